//! `mooseng explain CODE`.

use mooseng_region::HealthCode;
use mooseng_region::codes::ALL;
use serde_json::{Value, json};

use crate::args::{Explain, Format};
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::suggest;

/// Prints what a code means, or all codes.
pub fn run(args: &Explain) -> Result<(), Failure> {
    let Some(word) = &args.code else { return all(args.output.format) };
    let code = find(word)?;
    match args.output.format {
        Format::Json => output::json(&json!({ "version": output::VERSION, "code": describe(code) })),
        Format::Table => output::text_line(&format!(
            "{} ({})\n{}\n\nCause: {}\n\nFix: {}",
            code.code,
            code.severity.as_str(),
            code.meaning,
            code.cause,
            code.fix
        )),
    }
}

fn find(word: &str) -> Result<&'static HealthCode, Failure> {
    if let Some(code) = ALL.iter().find(|c| c.code.eq_ignore_ascii_case(word)) {
        return Ok(code);
    }
    let hint = match suggest::nearest(word, ALL.iter().map(|c| c.code)) {
        Some(near) => format!("Did you mean {near}?"),
        None => "`mooseng explain` without a code lists all of them.".to_owned(),
    };
    Err(Failure::not_found(format!("There is no health code {word:?}. {hint}")))
}

fn all(format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let codes: Vec<Value> = ALL.iter().map(describe).collect();
        return output::json(&json!({ "version": output::VERSION, "codes": codes }));
    }
    let mut table = Table::new(["CODE", "SEVERITY", "MEANING"]);
    for code in ALL {
        table.row([code.code.into(), code.severity.as_str().into(), code.meaning.into()]);
    }
    output::text_line(&table.render())
}

fn describe(code: &HealthCode) -> Value {
    json!({
        "code": code.code, "severity": code.severity.as_str(), "meaning": code.meaning, "cause": code.cause, "fix": code.fix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_and_typos_are_helped() {
        assert_eq!(find("no_quorum").unwrap().code, "NO_QUORUM");
        let failure = find("NO_QUORM").unwrap_err();
        assert_eq!(failure.exit_code(), 3);
        assert!(failure.to_string().contains("NO_QUORUM"), "{failure}");
    }
}
