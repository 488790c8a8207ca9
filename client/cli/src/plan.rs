//! What a change would do, as `--plan` tells it: what would be copied and over which link, how many copies or votes there are and what survives which loss, before,
//! during and after it, and whether anything goes below its goal on the way. In text and in JSON, of one shape for all commands. Pure.
//!
//! ```text
//!  what masters tell (status, regions, volumes, classes) --> a command's module --> Plan --> text | JSON
//! ```
//! - [`links`]: how long messages take between regions.
//! - [`group`]: who votes, in a region and between regions, and what that survives.
//! - [`servers`]: which chunkservers take copies.
//! - [`volumes`], [`regions`], [`members`], [`drain`], [`class`]: the plans of the commands.
//!
//! A plan is made here, of what masters tell anyway, where they would have to be asked for nothing but a refusal: so one of an earlier release, which knows of no plan,
//! can't take it for the order. What they would refuse is refused by the same rules, which are theirs (`mooseng-global`, `mooseng-region`).

use serde_json::{Map, Value, json};

use crate::args::Format;
use crate::exit::{Failure, Kind};
use crate::outlook::Outlook;
use crate::output;

pub mod class;
pub mod drain;
pub mod group;
pub mod links;
pub mod members;
pub mod regions;
pub mod servers;
pub mod volumes;

/// The last line of a plan.
pub const NOTHING_CHANGED: &str = "Nothing was changed. The same command without --plan does it.";

/// How long a message takes there and back, behind the region that it is about; nothing where nobody knows.
pub fn way(round_trip_us: Option<u64>) -> String {
    round_trip_us.map_or(String::new(), |us| format!(" (round trip {:.1} ms)", us as f64 / 1_000.0))
}

/// What the loss of each region means before a change, and `after` it.
pub fn before_and_after(losses: &[(Outlook, Outlook)], after: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for (before, then) in losses {
        if before == then {
            lines.push(format!("If {} were lost, before and after: {}", before.region, before.sentence));
        } else {
            lines.push(format!("If {} were lost, before: {}", before.region, before.sentence));
            lines.push(format!("If {} were lost, {after}: {}", then.region, then.sentence));
        }
    }
    lines
}

/// What the masters would refuse.
pub fn refused(kind: Kind, why: impl std::fmt::Display) -> Failure {
    Failure::new(kind, format!("The masters would refuse this: {why}."))
}

/// Words in a row, as in "before, during and after".
pub fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Something before a change, during it, and after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages<T> {
    /// As it is.
    pub before: T,
    /// From when the change begins until it is through; the worst of that.
    pub during: T,
    /// Once it is through.
    pub after: T,
}

impl<T> Stages<T> {
    /// These.
    pub fn new(before: T, during: T, after: T) -> Self {
        Self { before, during, after }
    }

    /// Each with its word.
    pub fn named(&self) -> [(&'static str, &T); 3] {
        [("before", &self.before), ("during", &self.during), ("after", &self.after)]
    }

    /// Something of each.
    pub fn map<U>(&self, of: impl Fn(&T) -> U) -> Stages<U> {
        Stages { before: of(&self.before), during: of(&self.during), after: of(&self.after) }
    }
}

/// What is said, each once, with when it is so.
fn merged<'a>(said: impl IntoIterator<Item = (&'static str, &'a str)>) -> Vec<(String, &'a str)> {
    let mut all: Vec<(Vec<&'static str>, &'a str)> = Vec::new();
    for (when, what) in said {
        match all.iter_mut().find(|(_, known)| *known == what) {
            Some((whens, _)) => whens.push(when),
            None => all.push((vec![when], what)),
        }
    }
    all.into_iter().map(|(whens, what)| (listed(&whens), what)).collect()
}

/// Over what something is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Within this region.
    Within(String),
    /// From one region to another, with how long a message takes there and back, in microseconds, if anybody told.
    Between(Option<u64>),
}

/// How much is copied, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Chunks.
    pub chunks: Option<u64>,
    /// Bytes.
    pub bytes: Option<u64>,
    /// It may be less.
    pub at_most: bool,
}

impl Amount {
    fn told(&self) -> String {
        let at_most = if self.at_most { "at most " } else { "" };
        match (self.bytes, self.chunks) {
            (Some(bytes), Some(chunks)) => {
                format!("{at_most}{} in {chunks} chunks", output::bytes(bytes))
            }
            (Some(bytes), None) => format!("{at_most}{}", output::bytes(bytes)),
            (None, Some(chunks)) => format!("{at_most}{chunks} chunks; how many bytes that is isn't known"),
            (None, None) => "how much that is isn't known".to_owned(),
        }
    }
}

/// Something that would be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// What, at the beginning of a sentence.
    pub what: String,
    /// From where.
    pub from: String,
    /// Where to.
    pub to: String,
    /// Over what.
    pub link: Link,
    /// How much.
    pub amount: Amount,
}

impl Copied {
    fn line(&self) -> String {
        let link = match &self.link {
            Link::Within(region) => format!(" (within {region})"),
            Link::Between(None) => " (round trip not known)".to_owned(),
            Link::Between(known) => way(*known),
        };
        let Self { what, from, to, .. } = self;
        format!("{what} would be copied from {from} to {to}{link}: {}.", self.amount.told())
    }

    fn shape(&self) -> Value {
        let (within, round_trip_us) = match &self.link {
            Link::Within(region) => (Some(region), None),
            Link::Between(known) => (None, *known),
        };
        let Amount { chunks, bytes, at_most } = self.amount;
        json!({
            "what": self.what, "from": self.from, "to": self.to, "within": within, "round_trip_us": round_trip_us,
            "chunks": chunks, "bytes": bytes, "at_most": at_most,
        })
    }
}

/// How many copies or votes there are of something, or which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Its key in JSON.
    pub key: String,
    /// What is counted.
    pub what: String,
    /// In words, and in JSON.
    pub stages: Stages<(String, Value)>,
}

impl Count {
    /// A number of something.
    pub fn number(key: impl Into<String>, what: impl Into<String>, stages: &Stages<usize>) -> Self {
        Self { key: key.into(), what: what.into(), stages: stages.map(|n| (n.to_string(), json!(n))) }
    }

    fn line(&self) -> String {
        let said = self.stages.named().map(|(when, (text, _))| (when, text.as_str()));
        let told: Vec<String> =
            merged(said).into_iter().map(|(when, text)| format!("{when}: {text}")).collect();
        format!("{} {}.", self.what, told.join("; "))
    }
}

/// What a loss would mean, at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    sentence: String,
    shape: Value,
}

impl Meaning {
    /// For a volume.
    pub fn of(outlook: &Outlook) -> Self {
        Self { sentence: outlook.sentence.clone(), shape: outlook.shape() }
    }

    /// For a group: whether it goes on.
    pub fn goes_on(goes_on: bool, sentence: impl Into<String>) -> Self {
        let (sentence, then) = (sentence.into(), if goes_on { "goes_on" } else { "waits" });
        Self { shape: json!({ "then": then, "sentence": sentence }), sentence }
    }

    /// For what is stored: whether all of it is left; none where nobody can say.
    pub fn keeps(all: Option<bool>, sentence: impl Into<String>) -> Self {
        let survives = match all {
            Some(true) => json!("all"),
            Some(false) => json!("not_all"),
            None => Value::Null,
        };
        let sentence = sentence.into();
        Self { shape: json!({ "survives": survives, "sentence": sentence }), sentence }
    }
}

/// What a loss would mean before a change, during it and after it; none where there is nothing to lose, or to be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What is lost.
    pub lost: String,
    /// What that means.
    pub means: Stages<Option<Meaning>>,
}

impl Loss {
    fn lines(&self) -> Vec<String> {
        let said =
            self.means.named().into_iter().filter_map(|(when, meaning)| {
                meaning.as_ref().map(|meaning| (when, meaning.sentence.as_str()))
            });
        let line =
            |(when, sentence): (String, &str)| format!("If {} were lost, {when}: {sentence}", self.lost);
        merged(said).into_iter().map(line).collect()
    }

    fn shape(&self) -> Value {
        let [before, during, after] =
            self.means.named().map(|(_, meaning)| meaning.as_ref().map(|m| m.shape.clone()));
        json!({ "lost": self.lost, "before": before, "during": during, "after": after })
    }
}

/// Something that is to hold, and whether it does on the way and afterwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Goal {
    /// What is to hold.
    pub goal: String,
    /// Why it wouldn't, sentences.
    pub below: Vec<String>,
    /// Why nobody can say, sentences.
    pub unknown: Vec<String>,
    /// That it is missed before and isn't any more afterwards, a sentence.
    pub mended: Option<String>,
}

impl Goal {
    /// One that holds, as far as is known so far.
    pub fn new(goal: impl Into<String>) -> Self {
        Self { goal: goal.into(), ..Self::default() }
    }

    /// Whether anything goes below it; none where nobody can say.
    pub fn goes_below(&self) -> Option<bool> {
        match (self.below.is_empty(), self.unknown.is_empty()) {
            (false, _) => Some(true),
            (true, true) => Some(false),
            (true, false) => None,
        }
    }

    fn line(&self) -> String {
        let why: Vec<&str> = self.below.iter().chain(&self.unknown).map(String::as_str).collect();
        let why = why.join(" ");
        match self.goes_below() {
            Some(true) => format!("Goal: {}. It would be missed: {why}", self.goal),
            Some(false) => {
                let nothing = "Nothing goes below it, neither on the way nor afterwards.";
                format!("Goal: {}. {}", self.goal, self.mended.as_deref().unwrap_or(nothing))
            }
            None => format!("Goal: {}. Whether something goes below it isn't known: {why}", self.goal),
        }
    }

    fn shape(&self) -> Value {
        json!({
            "goal": self.goal, "goes_below": self.goes_below(), "why": self.below, "not_known": self.unknown, "mended": self.mended,
        })
    }
}

/// A plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What would be done, sentences.
    pub would: Vec<String>,
    /// What would be copied.
    pub copied: Vec<Copied>,
    /// How many copies and votes there are.
    pub counts: Vec<Count>,
    /// What losses would mean.
    pub losses: Vec<Loss>,
    /// What else there is to know, sentences.
    pub notes: Vec<String>,
    /// What isn't known, sentences.
    pub unknown: Vec<String>,
    /// What is to hold.
    pub goals: Vec<Goal>,
    /// What only this command's JSON has.
    pub fields: Map<String, Value>,
}

impl Plan {
    /// Begins with what would be done.
    pub fn new(would: impl Into<String>) -> Self {
        Self { would: vec![would.into()], ..Self::default() }
    }

    /// Adds a field to its JSON.
    pub fn field(&mut self, key: &str, value: Value) {
        self.fields.insert(key.to_owned(), value);
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut lines = self.would.clone();
        match self.copied.is_empty() {
            true => lines.push("Nothing would be copied.".to_owned()),
            false => lines.extend(self.copied.iter().map(Copied::line)),
        }
        lines.extend(self.counts.iter().map(Count::line));
        lines.extend(self.losses.iter().flat_map(Loss::lines));
        lines.extend(self.notes.iter().cloned());
        lines.extend(self.unknown.iter().cloned());
        lines.extend(self.goals.iter().map(Goal::line));
        lines.push(NOTHING_CHANGED.to_owned());
        lines.join("\n")
    }

    /// Whether anything goes below any goal; none where nobody can say.
    pub fn goes_below(&self) -> Option<bool> {
        let all: Vec<Option<bool>> = self.goals.iter().map(Goal::goes_below).collect();
        match (all.contains(&Some(true)), all.contains(&None)) {
            (true, _) => Some(true),
            (false, true) => None,
            (false, false) => Some(false),
        }
    }

    /// For programs.
    pub fn shape(&self) -> Value {
        let counts = self.counts.iter().map(|count| {
            let [before, during, after] = count.stages.named().map(|(_, (_, value))| value.clone());
            (count.key.clone(), json!({ "before": before, "during": during, "after": after }))
        });
        let all = json!({
            "version": output::VERSION, "plan": true, "would": self.would,
            "copied": self.copied.iter().map(Copied::shape).collect::<Vec<_>>(),
            "counts": counts.collect::<Map<String, Value>>(),
            "losses": self.losses.iter().map(Loss::shape).collect::<Vec<_>>(),
            "notes": self.notes, "not_known": self.unknown,
            "goals": self.goals.iter().map(Goal::shape).collect::<Vec<_>>(), "goes_below_a_goal": self.goes_below(),
        });
        let mut shape = self.fields.clone();
        if let Value::Object(all) = all {
            shape.extend(all);
        }
        Value::Object(shape)
    }

    /// Prints it.
    pub fn print(&self, format: Format) -> Result<(), Failure> {
        match format {
            Format::Json => output::json(&self.shape()),
            Format::Table => output::text_line(&self.text()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let mut plan = Plan::new("Something would be done.");
        plan.field("agreed_version", json!(7));
        let (yes, no) = (Meaning::goes_on(true, "It goes on."), Meaning::goes_on(false, "It waits."));
        plan.losses = vec![
            Loss { lost: "a".into(), means: Stages::new(Some(yes.clone()), Some(no), Some(yes)) },
            Loss {
                lost: "b".into(),
                means: Stages::new(None, None, Some(Meaning::keeps(None, "Who knows."))),
            },
        ];
        plan.counts = vec![Count::number("copies", "Copies of each chunk", &Stages::new(2, 2, 3))];
        plan.goals = vec![Goal::new("it goes on")];
        plan
    }

    #[test]
    fn a_plan_says_what_is_so_when_and_each_thing_once() {
        assert_eq!(
            plan().text(),
            "Something would be done.\nNothing would be copied.\nCopies of each chunk before and during: 2; after: 3.\n\
             If a were lost, before and after: It goes on.\nIf a were lost, during: It waits.\nIf b were lost, after: Who knows.\n\
             Goal: it goes on. Nothing goes below it, neither on the way nor afterwards.\n\
             Nothing was changed. The same command without --plan does it."
        );
        let shape = plan().shape();
        assert_eq!(
            (&shape["version"], &shape["plan"], &shape["agreed_version"]),
            (&json!(1), &json!(true), &json!(7))
        );
        assert_eq!(shape["counts"]["copies"], json!({ "before": 2, "during": 2, "after": 3 }));
        assert_eq!(
            (&shape["losses"][0]["during"]["then"], &shape["losses"][1]["before"]),
            (&json!("waits"), &Value::Null)
        );
        assert_eq!(shape["losses"][1]["after"]["survives"], Value::Null);
        assert_eq!((&shape["goes_below_a_goal"], &shape["copied"]), (&json!(false), &json!([])));
    }

    #[test]
    fn what_is_copied_is_said_with_its_way_and_what_isnt_known_of_it() {
        let copied = |link, chunks, bytes, at_most| {
            let amount = Amount { chunks, bytes, at_most };
            Copied { what: "It".into(), from: "a".into(), to: "b".into(), link, amount }
        };
        for (copied, line) in [
            (
                copied(Link::Between(Some(60_200)), Some(2), Some(3 << 20), false),
                "from a to b (round trip 60.2 ms): 3.0 MiB in 2 chunks.",
            ),
            (
                copied(Link::Between(None), None, None, false),
                "(round trip not known): how much that is isn't known.",
            ),
            (copied(Link::Within("r".into()), None, Some(1), true), "(within r): at most 1 B."),
            (
                copied(Link::Within("r".into()), Some(1), None, false),
                "1 chunks; how many bytes that is isn't known.",
            ),
        ] {
            assert!(copied.line().ends_with(line), "{}", copied.line());
        }
        let shape = copied(Link::Between(Some(9)), None, Some(5), true).shape();
        assert_eq!(
            (&shape["round_trip_us"], &shape["bytes"], &shape["chunks"]),
            (&json!(9), &json!(5), &Value::Null)
        );
    }

    #[test]
    fn one_goal_that_is_missed_is_enough_and_what_isnt_known_is_no_yes() {
        let mut plan = plan();
        plan.goals.push(Goal {
            goal: "g".into(),
            unknown: vec!["Nobody answers.".into()],
            ..Goal::default()
        });
        assert_eq!(plan.goes_below(), None);
        assert!(
            plan.text().contains("Goal: g. Whether something goes below it isn't known: Nobody answers.")
        );
        plan.goals[1].below.push("Too few are left.".into());
        assert_eq!(plan.goes_below(), Some(true));
        let text = plan.text();
        assert!(text.contains("Goal: g. It would be missed: Too few are left. Nobody answers."), "{text}");
        assert_eq!(plan.shape()["goals"][1]["goes_below"], true);
        assert_eq!(Plan::default().goes_below(), Some(false));
    }
}
