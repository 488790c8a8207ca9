//! Spans: begun with a context, ended when they are dropped.

use std::borrow::Cow;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::Either;

use crate::context::{self, TRACE, fresh_span, ids, is_sampled, pack};
use crate::recorder;

/// Attributes of one span at most; further ones are left out.
const ATTRIBUTES_MAX: usize = 16;
/// Links of one span at most; further ones are left out.
const LINKS_MAX: usize = 16;

/// On which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Within a process.
    Internal,
    /// It calls.
    Client,
    /// It is called.
    Server,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(i64),
    /// A text.
    Text(Cow<'static, str>),
    /// Yes or no.
    Bool(bool),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Bool(yes)
    }
}

/// Another span that a span has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its trace.
    pub trace: [u8; 16],
    /// Its id.
    pub span: [u8; 8],
}

/// A span that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Its trace.
    pub trace: [u8; 16],
    /// Its id.
    pub id: [u8; 8],
    /// The span that it is a part of; zero for a trace's root.
    pub parent: [u8; 8],
    /// That one is another process's.
    pub parent_is_remote: bool,
    /// What was done.
    pub name: &'static str,
    /// On which side of a call it is.
    pub kind: Kind,
    /// When it began.
    pub began: SystemTime,
    /// When it ended: by the monotonic clock so much later.
    pub ended: SystemTime,
    /// What there is to know of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// What it has to do with.
    pub links: Vec<Link>,
    /// Why it failed.
    pub failure: Option<String>,
}

struct Open {
    span: Ended,
    since: Instant,
}

/// A stretch of a trace, from its making until it is dropped. It is empty, and nothing is done for it, unless the trace is sampled and this process
/// records.
#[derive(Default)]
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<Box<Open>>);

/// A part of what this task works on.
pub fn internal(name: &'static str) -> Span {
    here(name, Kind::Internal)
}

/// A call that this task makes.
pub fn client(name: &'static str) -> Span {
    here(name, Kind::Client)
}

/// A call that arrived with `context`.
pub fn server(name: &'static str, context: &[u8]) -> Span {
    Span::below(name, Kind::Server, context)
}

/// A part of what `context` says, which was begun in this process.
pub fn within(name: &'static str, context: &[u8]) -> Span {
    Span::below(name, Kind::Internal, context)
}

fn here(name: &'static str, kind: Kind) -> Span {
    if !recorder::records() {
        return Span(None);
    }
    TRACE.try_with(|context| Span::below(name, kind, context)).unwrap_or_default()
}

/// Runs an operation that begins here in a trace of its own, of which a share is sampled; within a trace it is a part of that one. `judge` hears
/// the outcome where the span is recorded.
pub async fn operation<T>(
    name: &'static str,
    work: impl Future<Output = T>,
    judge: impl FnOnce(&T, &mut Span),
) -> T {
    let now = context::current();
    let (span, context) = if now.is_empty() {
        Span::root(name)
    } else {
        let span = Span::below(name, Kind::Internal, &now);
        let context = if span.is_recorded() { span.context() } else { now };
        (span, context)
    };
    let outcome = TRACE.scope(context, work).await;
    span.judged(&outcome, judge);
    outcome
}

impl Span {
    fn root(name: &'static str) -> (Self, Bytes) {
        let (trace, sampled) = context::begin();
        if !sampled {
            return (Self(None), pack(trace, fresh_span(), false));
        }
        let span = Self::open(name, Kind::Server, trace, [0; 8]);
        let context = span.context();
        (span, context)
    }

    fn below(name: &'static str, kind: Kind, context: &[u8]) -> Self {
        if !recorder::records() || !is_sampled(context) {
            return Self(None);
        }
        ids(context).map_or(Self(None), |(trace, parent)| Self::open(name, kind, trace, parent))
    }

    fn open(name: &'static str, kind: Kind, trace: [u8; 16], parent: [u8; 8]) -> Self {
        let began = SystemTime::now();
        let parent_is_remote = kind == Kind::Server && parent != [0; 8];
        let span = Ended {
            trace,
            id: fresh_span(),
            parent,
            parent_is_remote,
            name,
            kind,
            began,
            ended: began,
            attributes: Vec::new(),
            links: Vec::new(),
            failure: None,
        };
        Self(Some(Box::new(Open { span, since: Instant::now() })))
    }

    /// Whether there is one.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// The context of what is a part of this span; empty where there is none.
    pub fn context(&self) -> Bytes {
        self.0.as_ref().map(|open| pack(open.span.trace, open.span.id, true)).unwrap_or_default()
    }

    /// Notes something of it. The value is made only where there is a span.
    pub fn note<V: Into<Value>>(&mut self, key: &'static str, value: impl FnOnce() -> V) {
        if let Some(open) = &mut self.0
            && open.span.attributes.len() < ATTRIBUTES_MAX
        {
            open.span.attributes.push((key, value().into()));
        }
    }

    /// As [`Span::note`], in a chain.
    pub fn noted<V: Into<Value>>(mut self, key: &'static str, value: impl FnOnce() -> V) -> Self {
        self.note(key, value);
        self
    }

    /// Names the span of `context` as one that this one has to do with.
    pub fn link(&mut self, context: &[u8]) {
        if let (Some(open), Some((trace, span))) = (&mut self.0, ids(context))
            && open.span.links.len() < LINKS_MAX
        {
            open.span.links.push(Link { trace, span });
        }
    }

    /// It failed.
    pub fn fail(&mut self, why: impl FnOnce() -> String) {
        if let Some(open) = &mut self.0 {
            open.span.failure = Some(why());
        }
    }

    fn judged<T>(mut self, outcome: &T, judge: impl FnOnce(&T, &mut Span)) {
        if self.is_recorded() {
            judge(outcome, &mut self);
        }
    }

    /// Runs `work` as what this span spans. It ends with the work, also where that is dropped. `judge` hears the outcome.
    pub fn run<F: Future>(
        self,
        work: F,
        judge: impl FnOnce(&F::Output, &mut Span),
    ) -> impl Future<Output = F::Output> {
        if !self.is_recorded() {
            return Either::Right(work);
        }
        let running = Running(Some(self));
        let context = running.0.as_ref().map(Span::context).unwrap_or_default();
        Either::Left(TRACE.scope(context, work).map(move |outcome| {
            running.ended().judged(&outcome, judge);
            outcome
        }))
    }

    /// As [`Span::run`], for work whose failure is the span's.
    pub fn watch<T, E: std::fmt::Display>(
        self,
        work: impl Future<Output = Result<T, E>>,
    ) -> impl Future<Output = Result<T, E>> {
        self.run(work, |outcome, span| {
            if let Err(error) = outcome {
                span.fail(|| error.to_string());
            }
        })
    }
}

/// A span whose work is under way.
struct Running(Option<Span>);

impl Running {
    fn ended(mut self) -> Span {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for Running {
    /// The caller went away, or its deadline passed.
    fn drop(&mut self) {
        if let Some(span) = &mut self.0 {
            span.note("cancelled", || true);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            let Open { mut span, since } = *open;
            span.ended = span.began + since.elapsed();
            recorder::take(span);
        }
    }
}
