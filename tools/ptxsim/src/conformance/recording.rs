//! What a card answered: one file for each card, a line of JSON for the card and one for each case.
//!
//! A case is named by the hash of its text and inputs, so that an answer can never be taken for that of a changed case. An
//! output that is bit for bit the expectation is kept as its hash; of another one the difference is kept as well.

use super::case::Case;
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// First line of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// As the driver tells it.
    pub card: String,
    /// Compute capability, `9.0`.
    pub capability: String,
    /// CUDA version of the driver, `13.0`.
    pub driver: String,
    /// Day of the recording, `2026-11-23`.
    pub date: String,
}

/// What the card answered to one case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Family and name, for people; the hash decides.
    pub case: String,
    /// [`Case::hash`]
    pub hash: String,
    /// SHA-256 of the output, undefined bits cleared; empty if there was none.
    pub output: String,
    /// Output XOR expectation, by zlib and base64; absent where that is all zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<String>,
    /// Where the card disagrees with the expectation; absent where it agrees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disagrees: Option<String>,
}

/// A whole recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The card.
    pub header: Header,
    /// One for each case.
    pub answers: Vec<Answer>,
}

/// Why a recording cannot be read or used.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file system.
    #[error("{path}: {error}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Reason.
        error: std::io::Error,
    },
    /// Not the format.
    #[error("{path}, line {line}: {reason}")]
    Format {
        /// File.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Reason.
        reason: String,
    },
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(x, y)| x ^ y).collect()
}

impl Answer {
    /// Of a case's output, or of the reason why there is none.
    pub fn new(case: &Case, outcome: &Result<Vec<u8>, String>) -> Answer {
        let answer = |output: String, delta: Option<String>, disagrees: Option<String>| Answer {
            case: case.title(),
            hash: case.hash(),
            output,
            delta,
            disagrees,
        };
        match outcome {
            Err(reason) => answer(String::new(), None, Some(reason.clone())),
            Ok(output) => {
                let masked = case.masked(output);
                let delta = xor(&masked, &case.masked(&case.expected));
                let differs = delta.iter().any(|&b| b != 0);
                let disagrees = case.compare(output).map(|d| d.to_string());
                answer(sha(&masked), differs.then(|| base64(&deflate(&delta))), disagrees)
            }
        }
    }

    /// The card's output: undefined bits are zero. An error if the expectation it is kept against has changed since.
    pub fn output(&self, case: &Case) -> Result<Vec<u8>, String> {
        if self.output.is_empty() {
            return Err(format!("the card gave no output: {}", self.disagrees.as_deref().unwrap_or("?")));
        }
        let expected = case.masked(&case.expected);
        let output = match &self.delta {
            None => expected,
            Some(text) => {
                let delta =
                    unbase64(text).and_then(|b| inflate(&b)).ok_or("the recorded delta is damaged")?;
                if delta.len() != expected.len() {
                    return Err("the recorded delta has another size than the output".into());
                }
                xor(&expected, &delta)
            }
        };
        if sha(&output) != self.output {
            return Err("the expectation has changed since the recording; record again".into());
        }
        Ok(output)
    }
}

impl Recording {
    /// `NVIDIA-A100-SXM4-40GB-8.0.jsonl`
    pub fn file_name(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let card: String = self.header.card.chars().map(plain).collect();
        format!("{card}-{}.jsonl", self.header.capability)
    }

    /// Writes it into a folder, which is made if absent.
    pub fn write(&self, dir: &Path) -> Result<PathBuf, RecordingError> {
        let path = dir.join(self.file_name());
        let io = |error| RecordingError::Io { path: path.clone(), error };
        std::fs::create_dir_all(dir).map_err(io)?;
        let mut text = serde_json::to_string(&self.header).map_err(|e| io(e.into()))? + "\n";
        for answer in &self.answers {
            text += &serde_json::to_string(answer).map_err(|e| io(e.into()))?;
            text.push('\n');
        }
        std::fs::write(&path, text).map_err(io)?;
        Ok(path)
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Recording, RecordingError> {
        let io = |error| RecordingError::Io { path: path.to_path_buf(), error };
        let text = std::fs::read_to_string(path).map_err(io)?;
        let mut lines = text.lines().enumerate();
        let bad =
            |line: usize, reason: String| RecordingError::Format { path: path.to_path_buf(), line, reason };
        let (_, first) = lines.next().ok_or_else(|| bad(1, "the file is empty".into()))?;
        let header = serde_json::from_str(first).map_err(|e| bad(1, e.to_string()))?;
        let answers = lines
            .map(|(i, line)| serde_json::from_str(line).map_err(|e| bad(i + 1, e.to_string())))
            .collect::<Result<_, _>>()?;
        Ok(Recording { header, answers })
    }

    /// Reads all of a folder, by name; an absent folder has none.
    pub fn read_all(dir: &Path) -> Result<Vec<Recording>, RecordingError> {
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let io = |error| RecordingError::Io { path: dir.to_path_buf(), error };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|e| e == "jsonl") {
                paths.push(path);
            }
        }
        paths.sort();
        paths.iter().map(|p| Recording::read(p)).collect()
    }

    /// The answers by the hash of their case.
    pub fn by_hash(&self) -> HashMap<&str, &Answer> {
        self.answers.iter().map(|a| (a.hash.as_str(), a)).collect()
    }
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    // Writing to a vector does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

fn inflate(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    ZlibDecoder::new(bytes).read_to_end(&mut out).ok()?;
    Some(out)
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0u32, |w, i| w << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { digit as char } else { '=' });
        }
    }
    text
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for chunk in text.as_bytes().chunks(4) {
        let digits: Vec<u8> = chunk.iter().copied().filter(|&c| c != b'=').collect();
        if chunk.len() != 4 || digits.len() < 2 {
            return None;
        }
        let mut word = 0u32;
        for i in 0..4 {
            let value = match digits.get(i) {
                Some(&c) => ALPHABET.iter().position(|&a| a == c)? as u32,
                None => 0,
            };
            word = word << 6 | value;
        }
        bytes.extend_from_slice(&word.to_be_bytes()[1..digits.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::families::family;
    use super::*;

    fn case() -> Case {
        let cases = family("integer").map(|f| f.cases()).unwrap_or_default();
        cases.into_iter().find(|c| c.name == "div.s32 d, a, b").unwrap_or_else(|| unreachable!())
    }

    #[test]
    fn base64_is_the_usual_one_and_comes_back() {
        assert_eq!(base64(b"Man"), "TWFu");
        assert_eq!(base64(b"Ma"), "TWE=");
        assert_eq!(base64(b"M"), "TQ==");
        for n in 0..50usize {
            let bytes: Vec<u8> = (0..n).map(|i| (i * 37 + n) as u8).collect();
            assert_eq!(unbase64(&base64(&bytes)).as_deref(), Some(&bytes[..]));
        }
        assert_eq!(unbase64("T!=="), None);
    }

    #[test]
    fn the_expectation_is_kept_as_a_hash() {
        let case = case();
        let answer = Answer::new(&case, &Ok(case.expected.clone()));
        assert_eq!((answer.delta.as_ref(), answer.disagrees.as_ref()), (None, None));
        assert_eq!(answer.output(&case).unwrap(), case.masked(&case.expected));
    }

    #[test]
    fn another_output_comes_back_whole_and_undefined_bits_do_not_count() {
        let case = case();
        let mut output = case.expected.clone();
        let defined = case.defined.iter().position(|&d| d == 0xff).unwrap();
        let open = case.defined.iter().position(|&d| d == 0).unwrap();
        output[open] ^= 0xff;
        assert_eq!(Answer::new(&case, &Ok(output.clone())).disagrees, None);
        output[defined] ^= 1;
        let answer = Answer::new(&case, &Ok(output.clone()));
        assert!(answer.disagrees.is_some());
        assert_eq!(answer.output(&case).unwrap(), case.masked(&output));
    }

    #[test]
    fn an_expectation_that_changed_is_noticed() {
        let mut case = case();
        let answer = Answer::new(&case, &Ok(case.expected.clone()));
        let at = case.defined.iter().position(|&d| d == 0xff).unwrap();
        case.expected[at] ^= 4;
        assert!(answer.output(&case).unwrap_err().contains("record again"));
    }

    #[test]
    fn a_file_comes_back() {
        let case = case();
        let header = Header {
            card: "Some Card (40 GB)".into(),
            capability: "8.0".into(),
            driver: "13.0".into(),
            date: "2026-01-02".into(),
        };
        let answers = vec![
            Answer::new(&case, &Ok(case.expected.clone())),
            Answer::new(&case, &Err("launch failed".into())),
        ];
        let recording = Recording { header, answers };
        assert_eq!(recording.file_name(), "Some-Card--40-GB--8.0.jsonl");
        let dir = std::env::temp_dir().join(format!("ptxsim-recording-{}", std::process::id()));
        recording.write(&dir).unwrap();
        assert_eq!(Recording::read_all(&dir).unwrap(), vec![recording]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
