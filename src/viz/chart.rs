//! Line charts as SVG text.
//!
//! The text holds geometry only. Colours, fonts and what shows under the pointer come from the style of the page it is
//! put into, by class: `c0` to `c7` for the lines, `grid`, `tick`, `band`, `line`, `end`, and `at` for the columns that
//! react to the pointer. There is no script.

use super::html::escape;
use std::fmt::Write;

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What it is called in the legend.
    pub name: String,
    /// Points `[x, y]` with ascending x. Points that are not finite are left out.
    pub points: Vec<[f64; 2]>,
}

/// How the values are spread over the height.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    #[default]
    Linear,
    /// By their logarithm where all are positive and the largest is more than [`LOG_FROM`] times the smallest.
    Auto,
}

/// The ratio of largest to smallest value from which [`Scale::Auto`] takes logarithms.
pub const LOG_FROM: f64 = 30.0;

/// Lines over a common axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// What is shown; read aloud, and shown under the pointer.
    pub title: String,
    /// What the horizontal axis counts.
    pub x: String,
    /// The lines, in the order of their colours.
    pub lines: Vec<Line>,
    /// How values are spread.
    pub scale: Scale,
    /// Values that the vertical axis must reach.
    pub reach: Vec<f64>,
}

/// How many colours there are; further lines begin again.
pub const COLOURS: usize = 8;
/// The most points that are drawn of a line; of longer ones, means over equal parts, with a band from least to most.
const POINTS: usize = 240;
/// The most columns that react to the pointer.
const COLUMNS: usize = 48;
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 214.0;
/// The corners of the plot.
const LEFT: f64 = 42.0;
const RIGHT: f64 = WIDTH - 12.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = HEIGHT - 30.0;

/// A part of a line: its centre, and mean, least and most of its values.
#[derive(Clone, Copy)]
struct Part {
    x: f64,
    y: f64,
    low: f64,
    high: f64,
}

/// Cuts a line into at most `most` parts of equal numbers of points.
fn parts(points: &[[f64; 2]], most: usize) -> Vec<Part> {
    let finite: Vec<[f64; 2]> = points.iter().copied().filter(|p| p.iter().all(|v| v.is_finite())).collect();
    let size = finite.len().div_ceil(most).max(1);
    let part = |p: &[[f64; 2]]| {
        let mean = |axis: usize| p.iter().map(|v| v[axis]).sum::<f64>() / p.len() as f64;
        let ys = || p.iter().map(|v| v[1]);
        Part {
            x: mean(0),
            y: mean(1),
            low: ys().fold(f64::INFINITY, f64::min),
            high: ys().fold(f64::NEG_INFINITY, f64::max),
        }
    };
    finite.chunks(size).map(part).collect()
}

/// From values to places.
struct Axis {
    /// Least and most value; of logarithms with `log`.
    range: [f64; 2],
    log: bool,
    places: [f64; 2],
}

impl Axis {
    fn new(least: f64, most: f64, log: bool, places: [f64; 2]) -> Self {
        let [a, b] = if log { [least.log10(), most.log10()] } else { [least, most] };
        // A single value gets some room.
        let room = if b > a { 0.0 } else { a.abs().max(1e-9) * 0.1 };
        Axis { range: [a - room, b + room], log, places }
    }

    /// Adds a share of the range at both ends.
    fn padded(mut self, share: f64) -> Self {
        let room = (self.range[1] - self.range[0]) * share;
        self.range = [self.range[0] - room, self.range[1] + room];
        self
    }

    fn at(&self, v: f64) -> f64 {
        let v = if self.log { v.log10() } else { v };
        let [a, b] = self.range;
        self.places[0] + (v - a) / (b - a) * (self.places[1] - self.places[0])
    }

    /// Round values inside the range, about `count` of them.
    fn ticks(&self, count: f64) -> Vec<f64> {
        let [a, b] = self.range;
        let inside = |v: &f64| (a..=b).contains(v);
        if self.log {
            let steps: &[f64] = if b - a < 1.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let every = ((b - a) / count).ceil().max(1.0) as i32;
            let decades = (a.floor() as i32..=b.ceil() as i32).filter(|d| d.rem_euclid(every) == 0);
            return decades
                .flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)))
                .filter(|v| inside(&v.log10()))
                .collect();
        }
        let rough = (b - a) / count;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].into_iter().find(|s| s * unit >= rough).unwrap_or(10.0) * unit;
        let first = (a / step).ceil() as i64;
        (0..64)
            // `+ 0.0` turns a negative zero into a positive one.
            .map(|i| (first + i) as f64 * step + 0.0)
            .take_while(|v| *v <= b + step * 1e-9)
            .collect()
    }
}

/// A number as short as three or four digits tell it: `0.0123`, `12.3`, `4.5k`, `2e-4`.
pub fn short(v: f64) -> String {
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    };
    let a = v.abs();
    match a {
        0.0 => "0".into(),
        _ if !(1e-3..1e9).contains(&a) => {
            let text = format!("{v:.2e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{power}", trimmed(digits.to_string()))
        }
        _ if a < 1.0 => trimmed(format!("{v:.4}")),
        _ if a < 10.0 => trimmed(format!("{v:.3}")),
        _ if a < 100.0 => trimmed(format!("{v:.2}")),
        _ if a < 1e4 => trimmed(format!("{v:.0}")),
        _ if a < 1e6 => format!("{}k", trimmed(format!("{:.1}", v / 1e3))),
        _ => format!("{}M", trimmed(format!("{:.1}", v / 1e6))),
    }
}

/// A value beside an axis: without the noise of binary fractions.
fn tick(v: f64) -> String {
    short(format!("{v:.6e}").parse().unwrap_or(v))
}

impl Chart {
    /// The chart, 360 units wide; `None` if no line has a point.
    pub fn to_svg(&self) -> Option<String> {
        let lines: Vec<Vec<Part>> = self.lines.iter().map(|l| parts(&l.points, POINTS)).collect();
        let all = || lines.iter().flatten();
        let first = all().map(|p| p.x).fold(f64::INFINITY, f64::min);
        let last = all().map(|p| p.x).fold(f64::NEG_INFINITY, f64::max);
        if first > last {
            return None;
        }
        let reach = || self.reach.iter().copied();
        let least = all().map(|p| p.low).chain(reach()).fold(f64::INFINITY, f64::min);
        let most = all().map(|p| p.high).chain(reach()).fold(f64::NEG_INFINITY, f64::max);
        let log = self.scale == Scale::Auto && least > 0.0 && most > LOG_FROM * least;
        let x = Axis::new(first, last, false, [LEFT, RIGHT]);
        let y = Axis::new(least, most, log, [BOTTOM, TOP]).padded(0.04);
        let mut out = String::new();
        self.head(&mut out, &lines, log);
        axes(&mut out, &x, &y, &self.x);
        for (i, line) in lines.iter().enumerate() {
            draw(&mut out, i % COLOURS, line, &x, &y);
        }
        self.columns(&mut out, &lines, &x, &y);
        out.push_str("</svg>");
        Some(out)
    }

    /// Opens the picture and says in words what it shows.
    fn head(&self, out: &mut String, lines: &[Vec<Part>], log: bool) {
        let mut said = self.title.clone();
        for (line, parts) in self.lines.iter().zip(lines) {
            if let (Some(a), Some(b)) = (parts.first(), parts.last()) {
                let _ = write!(said, "; {} from {} to {}", line.name, short(a.y), short(b.y));
            }
        }
        let scale = if log { "; logarithmic" } else { "" };
        let _ = write!(
            out,
            r#"<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}{scale}">"#,
            escape(&said)
        );
    }

    /// The columns that react to the pointer: a rule, a dot on every line, and the values.
    fn columns(&self, out: &mut String, lines: &[Vec<Part>], x: &Axis, y: &Axis) {
        let Some(longest) = lines.iter().max_by_key(|l| l.len()) else { return };
        let size = longest.len().div_ceil(COLUMNS).max(1);
        let mut stops: Vec<f64> = longest.iter().step_by(size).map(|p| p.x).collect();
        if let (Some(last), Some(stop)) = (longest.last(), stops.last_mut()) {
            *stop = last.x;
        }
        for (i, &stop) in stops.iter().enumerate() {
            let edge = |other: Option<&f64>, end: f64| other.map_or(end, |o| x.at((o + stop) / 2.0));
            let from = edge(i.checked_sub(1).and_then(|j| stops.get(j)), LEFT);
            let to = edge(stops.get(i + 1), RIGHT);
            let at = x.at(stop);
            let _ = write!(
                out,
                r#"<g class="at"><rect x="{from:.1}" y="0" width="{:.1}" height="{BOTTOM}"/><path d="M{at:.1} {TOP}V{BOTTOM}"/>"#,
                (to - from).max(0.1)
            );
            let mut said = format!("{} {}", self.x, short(stop.round()));
            let mut values = format!("<tspan>{} {}</tspan>", escape(&self.x), short(stop.round()));
            for (c, (line, parts)) in self.lines.iter().zip(lines).enumerate() {
                let distance = |p: &&Part| (p.x - stop).abs();
                let Some(p) = parts.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))) else {
                    continue;
                };
                let (c, value) = (c % COLOURS, short(p.y));
                let _ = write!(
                    out,
                    r#"<circle class="c{c}" cx="{:.1}" cy="{:.1}" r="3"/>"#,
                    x.at(p.x),
                    y.at(p.y)
                );
                let _ = write!(values, r#" <tspan class="c{c}" dx="4">{value}</tspan>"#);
                let _ = write!(said, "\n{}: {value}", line.name);
            }
            let _ = write!(
                out,
                r#"<text x="{RIGHT}" y="11">{values}</text><title>{}</title></g>"#,
                escape(&said)
            );
        }
    }
}

/// Rules, and the numbers beside them.
fn axes(out: &mut String, x: &Axis, y: &Axis, x_name: &str) {
    for v in y.ticks(5.0) {
        let at = y.at(v);
        let _ = write!(
            out,
            r#"<path class="grid" d="M{LEFT} {at:.1}H{RIGHT}"/><text class="tick y" x="{:.1}" y="{:.1}">{}</text>"#,
            LEFT - 6.0,
            at + 3.5,
            tick(v)
        );
    }
    for v in x.ticks(5.0) {
        let at = x.at(v);
        // A number at the right end would be cut off if it stood in the middle under its tick.
        let (class, text) = if at > WIDTH - 20.0 { ("tick name", WIDTH) } else { ("tick", at) };
        let _ = write!(
            out,
            r#"<path class="grid" d="M{at:.1} {BOTTOM}v4"/><text class="{class}" x="{text:.1}" y="{:.1}">{}</text>"#,
            BOTTOM + 14.0,
            tick(v)
        );
    }
    let _ = write!(
        out,
        r#"<path class="base" d="M{LEFT} {BOTTOM}H{RIGHT}"/><text class="tick name" x="{RIGHT}" y="{}">{}</text>"#,
        HEIGHT - 3.0,
        escape(x_name)
    );
}

/// One line, its band, and a dot at its end.
fn draw(out: &mut String, colour: usize, line: &[Part], x: &Axis, y: &Axis) {
    let Some(end) = line.last() else { return };
    if line.iter().any(|p| p.high > p.low) {
        let upper = line.iter().map(|p| (p.x, p.high));
        let lower = line.iter().rev().map(|p| (p.x, p.low));
        let mut path = String::new();
        for (i, (px, py)) in upper.chain(lower).enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, x.at(px), y.at(py));
        }
        let _ = write!(out, r#"<path class="band c{colour}" d="{path}Z"/>"#);
    }
    let mut path = String::new();
    for (i, p) in line.iter().enumerate() {
        let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, x.at(p.x), y.at(p.y));
    }
    let _ = write!(out, r#"<path class="line c{colour}" d="{path}"/>"#);
    let _ = write!(
        out,
        r#"<circle class="end c{colour}" cx="{:.1}" cy="{:.1}" r="2.4"/>"#,
        x.at(end.x),
        y.at(end.y)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[[f64; 2]], scale: Scale) -> Chart {
        let line = Line { name: "a <b>".into(), points: points.to_vec() };
        Chart { title: "t".into(), x: "step".into(), lines: vec![line], scale, reach: vec![] }
    }

    #[test]
    fn numbers_are_short() {
        let of: Vec<String> =
            [0.0, 1e-3, 2e-4, 0.51239, 1.0, 12.345, -3.25, 120.0, 45_300.0, 2.5e6, 1.25e-5].map(short).into();
        assert_eq!(
            of,
            ["0", "0.001", "2e-4", "0.5124", "1", "12.35", "-3.25", "120", "45.3k", "2.5M", "1.25e-5"]
        );
        assert_eq!(tick(0.1 + 0.2), "0.3");
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::new(0.0, 200.0, false, [0.0, 1.0]);
        assert_eq!(axis.ticks(4.0), [0.0, 50.0, 100.0, 150.0, 200.0]);
        let axis = Axis::new(-0.13, 0.87, false, [0.0, 1.0]);
        assert_eq!(axis.ticks(4.0), [0.0, 0.5]);
        let axis = Axis::new(0.003, 40.0, true, [0.0, 1.0]);
        assert_eq!(axis.ticks(5.0).iter().map(|v| tick(*v)).collect::<Vec<_>>(), ["0.01", "0.1", "1", "10"]);
    }

    #[test]
    fn places_follow_the_axes() {
        let svg = chart(&[[0.0, 1.0], [10.0, 1.0], [10.0, 0.0]], Scale::Linear).to_svg().unwrap();
        let path = svg.split("class=\"line c0\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        // A margin of 4 % at both ends of the height.
        let (h, m) = (BOTTOM - TOP, (BOTTOM - TOP) * 0.04 / 1.08);
        let want =
            format!("M{LEFT:.1} {:.1}L{RIGHT:.1} {:.1}L{RIGHT:.1} {:.1}", TOP + m, TOP + m, TOP + h - m);
        assert_eq!(path, want);
    }

    #[test]
    fn long_lines_are_thinned_and_keep_their_extremes() {
        let points: Vec<[f64; 2]> =
            (0..100_000).map(|i| [f64::from(i), if i == 5000 { 99.0 } else { f64::from(i % 7) }]).collect();
        let svg = chart(&points, Scale::Linear).to_svg().unwrap();
        assert!(svg.len() < 40_000, "{}", svg.len());
        assert!(svg.contains("class=\"band c0\"") && svg.contains(">100<"), "the extreme is within the axis");
        assert!(svg.matches("class=\"at\"").count() <= COLUMNS + 1);
    }

    #[test]
    fn odd_input_draws_or_says_nothing() {
        assert_eq!(chart(&[], Scale::Linear).to_svg(), None);
        assert_eq!(chart(&[[1.0, f64::NAN], [f64::INFINITY, 1.0]], Scale::Auto).to_svg(), None);
        for points in [
            &[[3.0, 0.0]][..],
            &[[1.0, 5.0], [2.0, 5.0]],
            &[[1.0, 1e-30], [2.0, 1e30]],
            &[[1.0, -1.0], [2.0, 1e4]],
        ] {
            let svg = chart(points, Scale::Auto).to_svg().unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.contains("a &lt;b&gt;") && !svg.contains("<b>"));
        }
    }
}
