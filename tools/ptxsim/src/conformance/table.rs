//! The README's table: what is in the suite, and which cards have run it.

use super::families::FAMILIES;
use super::recording::Recording;

/// Before the table in the README.
pub const BEGIN: &str = "<!-- conformance:begin -->";
/// After it.
pub const END: &str = "<!-- conformance:end -->";

/// The text between the markers.
pub fn markdown(recordings: &[Recording]) -> String {
    let mut text =
        String::from("| family | instructions | cases | run by a card |\n| --- | --- | ---: | --- |\n");
    let mut total = 0;
    for family in FAMILIES {
        let cases = family.cases();
        total += cases.len();
        let hashes: Vec<String> = cases.iter().map(|c| c.hash()).collect();
        let runs: Vec<String> = recordings.iter().filter_map(|r| told(r, &hashes)).collect();
        let card = if runs.is_empty() { "no card yet".to_string() } else { runs.join("; ") };
        text += &format!("| {} | {} | {} | {card} |\n", family.name, family.about, cases.len());
    }
    text + &format!("| all | | {total} | |\n")
}

/// What a recording says of a family's cases; `None` if nothing.
fn told(recording: &Recording, hashes: &[String]) -> Option<String> {
    let answers = recording.by_hash();
    let found: Vec<_> = hashes.iter().filter_map(|h| answers.get(h.as_str())).collect();
    if found.is_empty() {
        return None;
    }
    let agree = found.iter().filter(|a| a.disagrees.is_none()).count();
    let h = &recording.header;
    Some(format!("{} ({}), {}: {agree} of {} agree", h.card, h.capability, h.date, found.len()))
}

/// The part of a README between the markers.
pub fn between(readme: &str) -> Option<&str> {
    let start = readme.find(BEGIN)? + BEGIN.len();
    let end = start + readme[start..].find(END)?;
    Some(readme[start..end].trim_matches('\n'))
}
