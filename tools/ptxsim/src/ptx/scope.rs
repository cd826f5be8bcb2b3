//! Names of one function: which declaration a use means, and unique names for declarations in nested scopes.

use super::ast::Operand;
use super::ast::Stmt;
use std::collections::{HashMap, HashSet};

/// A name as what is before its number, and the number: `("r", 12)` for `r12`. A register of a range has no leading zero.
fn numbered(name: &str) -> Option<(&str, u32)> {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &name[stem.len()..];
    if stem.is_empty() || digits.len() > 1 && digits.starts_with('0') {
        return None;
    }
    Some((stem, digits.parse().ok()?))
}

/// A set of names, and of ranges of names (`%r<9>`: `%r0` to `%r8`), each with what it is called in the tree where that
/// is something else.
#[derive(Debug, Default)]
pub(super) struct Names {
    single: HashMap<String, Option<String>>,
    ranges: HashMap<String, (u32, Option<String>)>,
    /// Prefix to the least number behind it among all names, to see whether a range would cover one of them.
    least: HashMap<String, u32>,
}

impl Names {
    /// Whether a new name (or range of `count` names) is one that is here, or has one in common with a range here. No
    /// range's prefix ends in a digit.
    fn overlaps(&self, name: &str, count: Option<u32>) -> bool {
        match count {
            None => self.single.contains_key(name) || self.in_range(name).is_some(),
            Some(count) => {
                self.ranges.contains_key(name) || self.least.get(name).is_some_and(|&least| least < count)
            }
        }
    }

    /// The prefix of the range that has this name, and what the range is called.
    fn in_range<'a>(&self, name: &'a str) -> Option<(&'a str, Option<&str>)> {
        if self.ranges.is_empty() {
            return None;
        }
        let (stem, number) = numbered(name)?;
        let (count, unique) = self.ranges.get(stem)?;
        (number < *count).then_some((stem, unique.as_deref()))
    }

    fn insert(&mut self, name: &str, count: Option<u32>, unique: Option<String>) {
        let Some(count) = count else {
            if let Some((stem, number)) = numbered(name) {
                let least = self.least.entry(stem.to_owned()).or_insert(number);
                *least = number.min(*least);
            }
            self.single.insert(name.to_owned(), unique);
            return;
        };
        // The same prefix comes again where this is the set of all scopes.
        let before = self.ranges.get(name).map_or(0, |&(count, _)| count);
        self.ranges.insert(name.to_owned(), (count.max(before), unique));
    }

    /// Adds a name; false where it was here.
    pub fn add(&mut self, name: &str) -> bool {
        let new = !self.overlaps(name, None);
        if new {
            self.insert(name, None, None);
        }
        new
    }

    /// What a name is called; `Some(None)` where it keeps its name, `None` where it is not here.
    fn find(&self, name: &str) -> Option<Option<String>> {
        if let Some(unique) = self.single.get(name) {
            return Some(unique.clone());
        }
        let (stem, unique) = self.in_range(name)?;
        Some(unique.map(|unique| format!("{unique}{}", &name[stem.len()..])))
    }
}

/// Outcome of looking a name up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Called as written, or not declared in this function.
    AsWritten,
    /// Called something else in the tree.
    Renamed(String),
    /// Declared in a scope that has ended, and nowhere else.
    Ended,
}

/// One `{ }`.
#[derive(Debug)]
struct Scope {
    names: Names,
    /// Index in `Scopes::labels`.
    id: usize,
    /// Whether a use can find anything here. Not in the outermost scope as long as nothing is renamed there, so that
    /// uses there, nearly all, cost no search.
    searched: bool,
}

/// Labels of a scope, for uses before their declaration.
#[derive(Debug)]
struct Labels {
    outer: Option<usize>,
    unique: HashMap<String, String>,
}

/// A place where a label is named.
#[derive(Debug)]
struct LabelUse {
    statement: usize,
    /// Operand of an instruction, or target of `.branchtargets`.
    slot: usize,
    scope: usize,
    /// Where it stands in the text.
    at: (usize, usize),
}

/// Scopes of a function, while it is read.
#[derive(Debug)]
pub(super) struct Scopes {
    open: Vec<Scope>,
    /// Every name declared so far, in whatever scope.
    all: Names,
    /// Names of scopes that have ended, those that kept their spelling.
    ended: Names,
    /// How many times a name was declared.
    times: HashMap<String, u32>,
    labels: Vec<Labels>,
    uses: Vec<LabelUse>,
    /// Labels of nested scopes.
    nested_labels: HashSet<String>,
    renamed_labels: bool,
}

/// `{ }` inside one another.
pub(super) const MAX_SCOPES: usize = 64;

impl Scopes {
    /// The outermost scope is open.
    pub fn new() -> Scopes {
        let mut scopes = Scopes {
            open: Vec::new(),
            all: Names::default(),
            ended: Names::default(),
            times: HashMap::new(),
            labels: Vec::new(),
            uses: Vec::new(),
            nested_labels: HashSet::new(),
            renamed_labels: false,
        };
        scopes.open();
        scopes
    }

    /// `{`; false where that is one too many.
    pub fn open(&mut self) -> bool {
        if self.open.len() == MAX_SCOPES {
            return false;
        }
        let outer = self.open.last().map(|scope| scope.id);
        self.open.push(Scope { names: Names::default(), id: self.labels.len(), searched: false });
        self.labels.push(Labels { outer, unique: HashMap::new() });
        true
    }

    /// `}`; true where that was the outermost.
    pub fn close(&mut self) -> bool {
        if let Some(scope) = self.open.pop()
            && !self.open.is_empty()
        {
            for (name, unique) in scope.names.single {
                if unique.is_none() {
                    self.ended.insert(&name, None, None);
                }
            }
            for (name, (count, unique)) in scope.names.ranges {
                if unique.is_none() {
                    self.ended.insert(&name, Some(count), None);
                }
            }
        }
        self.open.is_empty()
    }

    /// Declares a name, or a range of `count` names, in the innermost scope. Answers what to call it: a range's name is
    /// still a prefix. `None` where the scope has it already.
    pub fn declare(&mut self, globals: &Names, name: &str, count: Option<u32>) -> Option<String> {
        let nested = self.open.len() > 1;
        let scope = self.open.last_mut()?;
        if scope.names.overlaps(name, count) {
            return None;
        }
        // A global that is hidden here is still meant before this and outside of the scope.
        let taken = self.all.overlaps(name, count) || globals.overlaps(name, count);
        let unique = taken.then(|| {
            let times = self.times.entry(name.to_owned()).or_insert(1);
            *times += 1;
            // The second `@` keeps the range `%r@2@` apart from the register `%r@2`.
            if count.is_some() { format!("{name}@{times}@") } else { format!("{name}@{times}") }
        });
        scope.searched |= nested || taken;
        scope.names.insert(name, count, unique.clone());
        self.all.insert(name, count, None);
        Some(unique.unwrap_or_else(|| name.to_owned()))
    }

    /// Declares a label. Uses before it are settled by [`Scopes::settle_labels`].
    pub fn declare_label(&mut self, globals: &Names, name: &str) -> Option<String> {
        let unique = self.declare(globals, name, None)?;
        let scope = self.open.last()?;
        self.labels[scope.id].unique.insert(name.to_owned(), unique.clone());
        if self.open.len() > 1 {
            self.nested_labels.insert(name.to_owned());
        }
        self.renamed_labels |= unique != name;
        Some(unique)
    }

    /// What a variable or register is called.
    pub fn find(&self, name: &str) -> Found {
        for scope in self.open.iter().rev().filter(|scope| scope.searched) {
            match scope.names.find(name) {
                Some(Some(unique)) => return Found::Renamed(unique),
                Some(None) => return Found::AsWritten,
                None => {}
            }
        }
        // Ended names kept their spelling, so the outermost scope has no other declaration under it.
        if self.ended.find(name).is_some() { Found::Ended } else { Found::AsWritten }
    }

    /// Notes that operand or target `slot` of body statement `statement`, written as `at`, is a label.
    pub fn use_label(&mut self, statement: usize, slot: usize, at: (usize, usize)) {
        let scope = self.open.last().map_or(0, |scope| scope.id);
        self.uses.push(LabelUse { statement, slot, scope, at });
    }

    /// Gives every use of a label the name of the declaration that it sees. The error is the place of a use that sees
    /// none, though a nested scope has it.
    pub fn settle_labels(&self, body: &mut [Stmt]) -> Result<(), (usize, usize)> {
        if self.nested_labels.is_empty() && !self.renamed_labels {
            return Ok(());
        }
        for label in &self.uses {
            let name = match body.get_mut(label.statement) {
                Some(Stmt::Inst(inst)) => match inst.operands.get_mut(label.slot) {
                    Some(Operand::Name(name)) => name,
                    _ => continue,
                },
                Some(Stmt::BranchTargets(_, targets)) => &mut targets[label.slot],
                _ => continue,
            };
            let mut scope = Some(label.scope);
            loop {
                let Some(id) = scope else {
                    if self.nested_labels.contains(name) {
                        return Err(label.at);
                    }
                    break;
                };
                if let Some(unique) = self.labels[id].unique.get(name) {
                    name.clone_from(unique);
                    break;
                }
                scope = self.labels[id].outer;
            }
        }
        Ok(())
    }
}

/// A name without the suffix that made it unique: as the PTX text has it.
pub(super) fn as_written(name: &str) -> String {
    let Some(at) = name.find('@') else { return name.to_owned() };
    let behind = name[at + 1..].trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{}{}", &name[..at], behind.strip_prefix('@').unwrap_or(behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declare(scopes: &mut Scopes, name: &str, count: Option<u32>) -> Option<String> {
        scopes.declare(&Names::default(), name, count)
    }

    fn renamed(name: &str) -> Found {
        Found::Renamed(name.to_owned())
    }

    #[test]
    fn numbers_come_off() {
        assert_eq!(numbered("r120"), Some(("r", 120)));
        assert_eq!(numbered("r1_0"), Some(("r1_", 0)));
        for name in ["r007", "12", "r", "", "r99999999999"] {
            assert_eq!(numbered(name), None, "{name}");
        }
    }

    #[test]
    fn later_declarations_get_a_suffix() {
        let mut scopes = Scopes::new();
        assert_eq!(declare(&mut scopes, "p", None).unwrap(), "p");
        assert_eq!(declare(&mut scopes, "p", None), None);
        scopes.open();
        assert_eq!(scopes.find("p"), Found::AsWritten);
        assert_eq!(declare(&mut scopes, "p", None).unwrap(), "p@2");
        assert_eq!(scopes.find("p"), renamed("p@2"));
        scopes.open();
        assert_eq!(declare(&mut scopes, "p", None).unwrap(), "p@3");
        assert!(!scopes.close());
        assert_eq!(scopes.find("p"), renamed("p@2"));
        assert!(!scopes.close());
        assert_eq!(scopes.find("p"), Found::AsWritten);
        assert!(scopes.close());
    }

    #[test]
    fn ranges_and_single_names_meet() {
        let mut scopes = Scopes::new();
        assert_eq!(declare(&mut scopes, "r", Some(20)).unwrap(), "r");
        assert_eq!(declare(&mut scopes, "r", None).unwrap(), "r");
        assert_eq!(declare(&mut scopes, "r20", None).unwrap(), "r20");
        assert_eq!(declare(&mut scopes, "r19", None), None);
        scopes.open();
        assert_eq!(declare(&mut scopes, "r", Some(3)).unwrap(), "r@2@");
        assert_eq!(declare(&mut scopes, "r19", None).unwrap(), "r19@2");
        assert_eq!(scopes.find("r1"), renamed("r@2@1"));
        assert_eq!(scopes.find("r3"), Found::AsWritten);
        assert_eq!(scopes.find("r01"), Found::AsWritten);
        scopes.close();
        scopes.open();
        assert_eq!(declare(&mut scopes, "q7", None).unwrap(), "q7");
        scopes.open();
        assert_eq!(declare(&mut scopes, "q", Some(8)).unwrap(), "q@2@");
        assert_eq!(declare(&mut scopes, "q", Some(7)), None);
    }

    #[test]
    fn a_range_that_stays_clear_of_a_name_keeps_its_name() {
        let mut scopes = Scopes::new();
        declare(&mut scopes, "q7", None);
        scopes.open();
        assert_eq!(declare(&mut scopes, "q", Some(7)).unwrap(), "q");
        assert_eq!(scopes.find("q7"), Found::AsWritten);
        scopes.close();
        assert_eq!(scopes.find("q6"), Found::Ended);
    }

    #[test]
    fn ended_names_are_gone() {
        let mut scopes = Scopes::new();
        scopes.open();
        declare(&mut scopes, "t", None);
        scopes.close();
        assert_eq!(scopes.find("t"), Found::Ended);
        assert_eq!(declare(&mut scopes, "t", None).unwrap(), "t@2");
        assert_eq!(scopes.find("t"), renamed("t@2"));
    }

    #[test]
    fn a_nested_name_does_not_hide_a_global_outside() {
        let mut globals = Names::default();
        assert!(globals.add("tab"));
        assert!(!globals.add("tab"));
        let mut scopes = Scopes::new();
        scopes.open();
        assert_eq!(scopes.declare(&globals, "tab", None).unwrap(), "tab@2");
        scopes.close();
        assert_eq!(scopes.find("tab"), Found::AsWritten);
        assert_eq!(scopes.declare(&globals, "tab", None).unwrap(), "tab@3");
        assert_eq!(scopes.find("tab"), renamed("tab@3"));
    }

    #[test]
    fn scopes_have_a_limit() {
        let mut scopes = Scopes::new();
        assert_eq!((0..1000).filter(|_| scopes.open()).count(), MAX_SCOPES - 1);
    }

    #[test]
    fn suffixes_come_off() {
        for (name, written) in [("r", "r"), ("p@2", "p"), ("%r@2@13", "%r13"), ("v@12.x", "v.x")] {
            assert_eq!(as_written(name), written);
        }
    }
}
