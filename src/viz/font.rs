//! A tiny alphabet for labels in mosaics: capital letters, digits and a few signs, three by five pixels each.

use image::{Rgb, RgbImage};

/// Width of a character with its gap, in units of the scale.
const ADVANCE: u32 = 4;

/// The five rows of a character, from the top: three bits each, the left pixel highest, one octal digit a row. Small
/// letters are drawn as capitals; what is not in the alphabet as a box.
fn rows(c: char) -> u16 {
    match c.to_ascii_uppercase() {
        '0' => 0o75557,
        '1' => 0o26227,
        '2' => 0o71747,
        '3' => 0o71717,
        '4' => 0o55711,
        '5' => 0o74717,
        '6' => 0o74757,
        '7' => 0o71122,
        '8' => 0o75757,
        '9' => 0o75717,
        'A' => 0o25755,
        'B' => 0o65656,
        'C' => 0o34443,
        'D' => 0o65556,
        'E' => 0o74647,
        'F' => 0o74644,
        'G' => 0o34553,
        'H' => 0o55755,
        'I' => 0o72227,
        'J' => 0o11152,
        'K' => 0o55655,
        'L' => 0o44447,
        'M' => 0o57755,
        'N' => 0o65555,
        'O' => 0o25552,
        'P' => 0o65644,
        'Q' => 0o25573,
        'R' => 0o65655,
        'S' => 0o34216,
        'T' => 0o72222,
        'U' => 0o55557,
        'V' => 0o55552,
        'W' => 0o55775,
        'X' => 0o55255,
        'Y' => 0o55222,
        'Z' => 0o71247,
        ' ' => 0,
        '.' => 0o00002,
        ',' => 0o00024,
        ':' => 0o02020,
        '-' => 0o00700,
        '_' => 0o00007,
        '+' => 0o02720,
        '=' => 0o07070,
        '/' => 0o11244,
        '%' => 0o51245,
        '(' => 0o12221,
        ')' => 0o42224,
        _ => 0o77777,
    }
}

/// Height of a line at a scale, in pixels.
pub(super) fn height(scale: u32) -> u32 {
    5 * scale
}

/// Width of a text at a scale, in pixels.
pub(super) fn width(text: &str, scale: u32) -> u32 {
    (text.chars().count() as u32 * ADVANCE).saturating_sub(1) * scale
}

/// Draws a text with its upper left corner at `(x, y)`; what lies outside the picture is cut off.
pub(super) fn draw(image: &mut RgbImage, text: &str, x: u32, y: u32, scale: u32, colour: [u8; 3]) {
    for (i, c) in text.chars().enumerate() {
        let bits = rows(c);
        for cell in (0..15u32).filter(|cell| bits >> (14 - cell) & 1 == 1) {
            let (left, top) = (x + (i as u32 * ADVANCE + cell % 3) * scale, y + cell / 3 * scale);
            for (px, py) in (0..scale * scale).map(|p| (left + p % scale, top + p / scale)) {
                if px < image.width() && py < image.height() {
                    image.put_pixel(px, py, Rgb(colour));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_differ() {
        let all: Vec<char> = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ .,:-_+=/%()?".chars().collect();
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                // A zero is as wide as an O, and a T as an I: both pairs differ in one row.
                assert_ne!(rows(*a), rows(*b), "{a} {b}");
            }
        }
    }

    #[test]
    fn a_letter_as_drawn() {
        let mut image = RgbImage::new(8, 6);
        draw(&mut image, "tL", 0, 0, 1, [255; 3]);
        let text: Vec<String> = (0..5)
            .map(|y| (0..7).map(|x| if image.get_pixel(x, y)[0] > 0 { '#' } else { '.' }).collect())
            .collect();
        assert_eq!(text, ["###.#..", ".#..#..", ".#..#..", ".#..#..", ".#..###"]);
        assert_eq!((width("tL", 1), width("tL", 2), width("", 3), height(2)), (7, 14, 0, 10));
        draw(&mut image, "cut off", 6, 4, 3, [1; 3]);
    }
}
