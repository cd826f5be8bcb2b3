//! Colours for numbers and for classes.

/// Places along the heat scale: black over violet and orange to pale yellow, of evenly growing lightness, so that it also
/// reads in grey.
const HEAT: [[f64; 3]; 7] = [
    [8.0, 7.0, 30.0],
    [58.0, 15.0, 104.0],
    [122.0, 29.0, 122.0],
    [188.0, 52.0, 96.0],
    [236.0, 98.0, 52.0],
    [251.0, 170.0, 53.0],
    [250.0, 244.0, 178.0],
];

/// The colour of a number from 0 (dark) to 1 (bright); others are taken as the nearer end.
pub fn heat(v: f64) -> [u8; 3] {
    let at = v.clamp(0.0, 1.0) * (HEAT.len() - 1) as f64;
    let i = (at as usize).min(HEAT.len() - 2);
    std::array::from_fn(|c| {
        let (a, b) = (HEAT[i][c], HEAT[i + 1][c]);
        (a + (b - a) * (at - i as f64)).round() as u8
    })
}

/// The first classes' colours, chosen to differ for colour-blind eyes too. The first is that of a background.
const CLASSES: [[u8; 3]; 13] = [
    [72, 78, 90],
    [230, 97, 60],
    [66, 135, 245],
    [46, 170, 110],
    [250, 195, 60],
    [170, 90, 200],
    [60, 200, 215],
    [225, 100, 150],
    [150, 115, 70],
    [165, 205, 80],
    [110, 90, 220],
    [240, 160, 130],
    [170, 180, 190],
];

/// The colour of class or segment `id`. Any number of them; those of small numbers differ most.
pub fn class(id: usize) -> [u8; 3] {
    if let Some(c) = CLASSES.get(id) {
        return *c;
    }
    // Hues at steps of the golden ratio never come back to one another; two lightnesses alternate.
    let hue = (id as f64 * 0.618_033_988_749_895).fract() * 6.0;
    let light = if id.is_multiple_of(2) { 225.0 } else { 165.0 };
    let ramp = |offset: f64| {
        let h = (hue + offset) % 6.0;
        let share = (2.0 - (h - 3.0).abs()).clamp(0.0, 1.0);
        (light * (0.3 + 0.7 * (1.0 - share))).round() as u8
    };
    [ramp(3.0), ramp(1.0), ramp(5.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_grows_brighter() {
        let light = |v: f64| {
            let [r, g, b] = heat(v).map(f64::from);
            0.299 * r + 0.587 * g + 0.114 * b
        };
        for i in 0..100 {
            assert!(light(f64::from(i + 1) / 100.0) > light(f64::from(i) / 100.0) - 0.6, "{i}");
        }
        assert_eq!((heat(-1.0), heat(2.0)), ([8, 7, 30], [250, 244, 178]));
    }

    #[test]
    fn classes_differ() {
        let far = |a: [u8; 3], b: [u8; 3]| (0..3).map(|c| i32::from(a[c].abs_diff(b[c]))).sum::<i32>();
        for i in 0..40 {
            for j in 0..i {
                assert!(far(class(i), class(j)) > 8, "{i} {j}: {:?} {:?}", class(i), class(j));
            }
        }
    }
}
