//! What dtk reads out of PTX: the entries, and the bytes of their parameters.

/// The names of the kernels in a text.
pub(super) fn entries(ptx: &str) -> Vec<&str> {
    ptx.split(".entry ")
        .skip(1)
        .map(|rest| rest.split(['(', '\n', ' ']).next().unwrap_or("").trim())
        .collect()
}

/// The size of each parameter of a kernel; `None` if there is no such kernel.
pub(super) fn param_bytes(ptx: &str, entry: &str) -> Option<Vec<usize>> {
    let rest = ptx.split(".entry ").skip(1).find_map(|rest| {
        let after = rest.strip_prefix(entry)?.trim_start();
        after.strip_prefix('(')
    })?;
    let list = rest.split_once(')')?.0;
    list.split(',').map(str::trim).filter(|p| !p.is_empty()).map(bytes_of).collect()
}

/// The size of `.param .align 8 .b8 k_param_0[64]` or `.param .u64 k_param_0`.
fn bytes_of(param: &str) -> Option<usize> {
    let mut words = param.split_whitespace().peekable();
    let mut width = None;
    let mut name = "";
    while let Some(word) = words.next() {
        match word {
            ".param" => {}
            ".align" => drop(words.next()),
            ".ptr" => {}
            _ if word.starts_with('.') => width = width.or_else(|| scalar_bytes(word)),
            _ => name = word,
        }
    }
    let count = match name.split_once('[') {
        Some((_, count)) => count.trim_end_matches(']').parse().ok()?,
        None => 1,
    };
    Some(width? * count)
}

/// `.u64` is 8 bytes, `.b8` one.
fn scalar_bytes(word: &str) -> Option<usize> {
    let bits: usize = word.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
    Some(bits / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "
.visible .entry conv2d_fwd(
\t.param .align 8 .b8 conv2d_fwd_param_0[72]
)
.maxntid 256
{ ret; }
.visible .entry conv2d_fwd_reduce(
\t.param .u64 .ptr .global .align 16 a_param_0,
\t.param .f32 a_param_1,
\t.param .align 64 .b8 a_param_2[128]
)
{ ret; }
.visible .entry nothing()
{ ret; }
";

    #[test]
    fn entries_and_their_parameters() {
        assert_eq!(entries(PTX), ["conv2d_fwd", "conv2d_fwd_reduce", "nothing"]);
        assert_eq!(param_bytes(PTX, "conv2d_fwd"), Some(vec![72]));
        assert_eq!(param_bytes(PTX, "conv2d_fwd_reduce"), Some(vec![8, 4, 128]));
        assert_eq!(param_bytes(PTX, "nothing"), Some(vec![]));
        assert_eq!(param_bytes(PTX, "conv2d"), None);
        assert_eq!(entries(""), Vec::<&str>::new());
    }
}
