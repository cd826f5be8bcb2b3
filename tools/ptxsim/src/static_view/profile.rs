//! The static profile of a kernel.

use super::class::Class;
use super::flow::Flow;
use super::sass::Sass;
use crate::nvrtc::Resources;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Instructions by class and by opcode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mix {
    /// All.
    pub instructions: u32,
    /// By class; classes without an instruction are left out.
    pub classes: BTreeMap<Class, u32>,
    /// By opcode without its modifiers.
    pub opcodes: BTreeMap<String, u32>,
}

impl Mix {
    fn of<'a>(sass: &Sass, which: impl Iterator<Item = &'a usize>) -> Mix {
        let mut mix = Mix::default();
        for &i in which {
            let instruction = &sass.instructions[i];
            mix.instructions += 1;
            *mix.classes.entry(instruction.class).or_default() += 1;
            let base = instruction.opcode.split('.').next().unwrap_or("");
            *mix.opcodes.entry(base.to_string()).or_default() += 1;
        }
        mix
    }

    /// Instructions of a class.
    pub fn count(&self, class: Class) -> u32 {
        self.classes.get(&class).copied().unwrap_or(0)
    }
}

/// Instructions of one source line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Path as compiled.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// How many instructions.
    pub instructions: u32,
}

/// The loop that matters most, as far as nesting tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hottest {
    /// Offset of its first instruction.
    pub offset: u32,
    /// Loops around its instructions, itself included.
    pub depth: u32,
    /// Loops inside it count in.
    #[serde(flatten)]
    pub mix: Mix,
    /// Its source lines, those with the most instructions first.
    pub lines: Vec<Line>,
}

/// What is known of a kernel without running it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// Kernel.
    pub kernel: String,
    /// `sm_90a`
    pub arch: String,
    /// What ptxas says; `None` for a cubin that came without its log.
    pub resources: Option<Resources>,
    /// Instructions that can be reached.
    pub all: Mix,
    /// Instructions that ptxas marks as spills.
    pub spill_instructions: u32,
    /// Loops, nested ones included.
    pub loops: u32,
    /// `None` without a loop.
    pub hottest_loop: Option<Hottest>,
}

impl Profile {
    /// Of one kernel, with its account of the compiler's log where there is one.
    pub fn of(sass: &Sass, resources: &[Resources]) -> Profile {
        let flow = Flow::of(sass);
        let reached: Vec<usize> = (0..sass.instructions.len()).filter(|&i| flow.reachable[i]).collect();
        let hottest_loop = flow.hottest().map(|l| Hottest {
            offset: sass.instructions[l.header].offset,
            depth: l.depth,
            mix: Mix::of(sass, l.body.iter()),
            lines: lines(sass, &l.body),
        });
        Profile {
            kernel: sass.kernel.clone(),
            arch: sass.arch.clone(),
            resources: resources.iter().find(|r| r.kernel == sass.kernel).cloned(),
            all: Mix::of(sass, reached.iter()),
            spill_instructions: reached.iter().filter(|&&i| sass.instructions[i].spill).count() as u32,
            loops: flow.loops.len() as u32,
            hottest_loop,
        }
    }
}

fn lines(sass: &Sass, which: &[usize]) -> Vec<Line> {
    let mut counts: BTreeMap<(&str, u32), u32> = BTreeMap::new();
    for &i in which {
        let instruction = &sass.instructions[i];
        if instruction.line > 0 {
            *counts.entry((sass.file(instruction), instruction.line)).or_default() += 1;
        }
    }
    let mut all: Vec<Line> = counts
        .into_iter()
        .map(|((file, line), instructions)| Line { file: file.to_string(), line, instructions })
        .collect();
    all.sort_by_key(|l| std::cmp::Reverse(l.instructions));
    all
}

/// Source lines told in the table.
const LINES_SHOWN: usize = 8;

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.kernel, self.arch)?;
        if let Some(r) = &self.resources {
            writeln!(
                f,
                "  {} registers, {} B shared, {} B stack, spills {} B stored {} B loaded, {} barriers",
                r.registers,
                r.shared_bytes,
                r.stack_bytes,
                r.spill_store_bytes,
                r.spill_load_bytes,
                r.barriers
            )?;
        }
        let empty = Mix::default();
        let hot = self.hottest_loop.as_ref().map_or(&empty, |h| &h.mix);
        writeln!(f, "  {:<14}{:>8}{:>16}", "instructions", "kernel", "hottest loop")?;
        writeln!(f, "  {:<14}{:>8}{:>16}", "all", self.all.instructions, hot.instructions)?;
        for (&class, &count) in &self.all.classes {
            let inside = hot.count(class);
            let share = if hot.instructions == 0 {
                String::new()
            } else {
                format!("{inside} {:>5.1}%", 100.0 * f64::from(inside) / f64::from(hot.instructions))
            };
            writeln!(f, "  {:<14}{count:>8}{share:>16}", class.name())?;
        }
        match &self.hottest_loop {
            None => writeln!(f, "  no loop")?,
            Some(h) => {
                writeln!(f, "  hottest of {} loops: at {:#06x}, depth {}", self.loops, h.offset, h.depth)?;
                for l in h.lines.iter().take(LINES_SHOWN) {
                    writeln!(f, "    {:>5}  {}:{}", l.instructions, l.file, l.line)?;
                }
            }
        }
        Ok(())
    }
}
