//! The text that `nvdisasm -g -c` prints, taken apart.

use super::class::Class;
use serde::Serialize;
use std::collections::HashMap;

/// One machine instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instruction {
    /// Byte offset in the kernel's code.
    pub offset: u32,
    /// `@!P0` is `!P0`; empty without a guard.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub guard: String,
    /// `LDG.E.128`
    pub opcode: String,
    /// As printed, without the semicolon.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operands: String,
    /// What it is for.
    pub class: Class,
    /// Line of the `.cu`; 0 without line information.
    pub line: u32,
    /// Index into [`Sass::files`]; meaningless where the line is 0.
    pub file: u32,
    /// Instructions whose labels the operands name.
    #[serde(skip)]
    pub targets: Vec<usize>,
    /// ptxas put a register aside here, or fetched one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub spill: bool,
}

/// The code of one kernel, and of the functions it calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sass {
    /// Kernel.
    pub kernel: String,
    /// `sm_90a`
    pub arch: String,
    /// Paths named by the line information.
    pub files: Vec<String>,
    /// In order.
    pub instructions: Vec<Instruction>,
}

impl Sass {
    /// Path of an instruction's source; empty without line information.
    pub fn file(&self, instruction: &Instruction) -> &str {
        if instruction.line == 0 {
            return "";
        }
        self.files.get(instruction.file as usize).map_or("", String::as_str)
    }
}

/// All kernels of a disassembly, in the order of the text.
pub fn parse(text: &str) -> Result<Vec<Sass>, String> {
    let mut arch = String::new();
    let mut all: Vec<Sass> = Vec::new();
    let mut labels: HashMap<String, usize> = HashMap::new();
    let mut here = (0u32, 0u32); // file and line
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        let wrong = |what: &str| format!("nvdisasm's line {}: {what}: {trimmed}", number + 1);
        if let Some(rest) = trimmed.strip_prefix(".target") {
            arch = rest.trim().to_string();
        } else if let Some(rest) = trimmed.strip_prefix(".section\t").or(trimmed.strip_prefix(".section ")) {
            if let Some(sass) = all.last_mut().filter(|_| open) {
                link(sass, &labels);
            }
            labels.clear();
            here = (0, 0);
            let name = rest.trim().split(',').next().unwrap_or("").trim_matches('"');
            open = false;
            if let Some(kernel) = name.strip_prefix(".text.") {
                all.push(Sass { kernel: kernel.into(), arch: arch.clone(), ..Sass::default() });
                open = true;
            }
        } else if let Some(sass) = all.last_mut().filter(|_| open) {
            if let Some(place) = trimmed.strip_prefix("//## File \"") {
                let (file, rest) = place.split_once("\", line ").ok_or_else(|| wrong("no line"))?;
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                let file = sass.files.iter().position(|f| f == file).unwrap_or_else(|| {
                    sass.files.push(file.to_string());
                    sass.files.len() - 1
                });
                here = (file as u32, digits.parse().map_err(|_| wrong("no line"))?);
            } else if trimmed.starts_with("/*") {
                let instruction = instruction(trimmed, here).ok_or_else(|| wrong("no instruction"))?;
                sass.instructions.push(instruction);
            } else if let Some(label) = trimmed.strip_suffix(':') {
                labels.insert(label.to_string(), sass.instructions.len());
            }
        }
    }
    if let Some(sass) = all.last_mut().filter(|_| open) {
        link(sass, &labels);
    }
    Ok(all)
}

/// ``/*0850*/ @P0 BRA `(.L_x_0) ;``
fn instruction(line: &str, (file, at): (u32, u32)) -> Option<Instruction> {
    let (offset, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    let offset = u32::from_str_radix(offset, 16).ok()?;
    let mut rest = rest.trim().trim_end_matches(';').trim();
    let spill = rest.contains("\"SpillRefill\"");
    let guard = match rest.strip_prefix('@') {
        Some(guarded) => {
            let (guard, after) = guarded.split_once(char::is_whitespace)?;
            rest = after.trim();
            guard
        }
        None => "",
    };
    let (opcode, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if !opcode.starts_with(|c: char| c.is_ascii_uppercase()) {
        return None;
    }
    // Annotations come behind: (*"SpillRefill"*), (*"BRANCH_TARGETS .L_x_1,.L_x_2"*). Those of targets are kept.
    let operands = if spill { operands.split("(*").next().unwrap_or("") } else { operands };
    Some(Instruction {
        offset,
        guard: guard.to_string(),
        opcode: opcode.to_string(),
        operands: operands.trim().to_string(),
        class: Class::of(opcode),
        line: at,
        file,
        targets: Vec::new(),
        spill,
    })
}

/// Finds the instructions that operands name.
fn link(sass: &mut Sass, labels: &HashMap<String, usize>) {
    let count = sass.instructions.len();
    for instruction in &mut sass.instructions {
        let mut targets: Vec<usize> = Vec::new();
        let (plain, annotation) =
            instruction.operands.split_once("(*\"BRANCH_TARGETS").unwrap_or((&instruction.operands, ""));
        let listed = annotation.trim_end_matches("\"*)").split(',').map(str::trim);
        let named = plain.split("`(").skip(1).filter_map(|rest| rest.split(')').next());
        for name in named.chain(listed.filter(|n| !n.is_empty())) {
            targets.extend(labels.get(name).copied().filter(|&t| t < count));
        }
        instruction.targets = targets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
	.target	sm_80

//--------------------- .text.k                  --------------------------
	.section	.text.k,"ax",@progbits
	.sectioninfo	@"SHI_REGISTERS=10"
	.align	128
        .global         k
k:
.text.k:
	//## File "/x/k.cu", line 6
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
	//## File "/x/k.cu", line 7 inlined at "/x/k.cu", line 3
        /*0010*/                   STL [R1+0x130], R4                                (*"SpillRefill"*);
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/                   BRX R4 -0x10                         (*"BRANCH_TARGETS .L_x_1,.L_x_2"*);
.L_x_2:
        /*0040*/                   EXIT ;
.L_x_3:

	.section	.nv.shared.k,"aw",@nobits
.L_y:
	.section	.text.other,"ax",@progbits
        /*0000*/                   EXIT ;
"#;

    #[test]
    fn guards_lines_targets_and_spills_are_read() {
        let all = parse(TEXT).unwrap();
        assert_eq!(all.iter().map(|s| s.kernel.as_str()).collect::<Vec<_>>(), ["k", "other"]);
        let k = &all[0];
        assert_eq!((k.arch.as_str(), k.files.as_slice()), ("sm_80", ["/x/k.cu".to_string()].as_slice()));
        let seen: Vec<_> = k
            .instructions
            .iter()
            .map(|i| {
                (
                    i.offset,
                    i.guard.as_str(),
                    i.opcode.as_str(),
                    i.operands.as_str(),
                    i.line,
                    i.targets.clone(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (0, "", "MOV", "R1, c[0x0][0x28]", 6, vec![]),
                (16, "", "STL", "[R1+0x130], R4", 7, vec![]),
                (32, "!P0", "BRA", "`(.L_x_1)", 7, vec![1]),
                (48, "", "BRX", seen[3].3, 7, vec![1, 4]),
                (64, "", "EXIT", "", 7, vec![]),
            ]
        );
        assert!(k.instructions[1].spill && !k.instructions[2].spill);
    }

    #[test]
    fn a_line_that_is_not_understood_is_shown() {
        let error = parse(&TEXT.replace("EXIT ;", "*** ;")).unwrap_err();
        assert!(error.contains("/*0040*/"), "{error}");
    }
}
