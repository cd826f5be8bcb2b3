//! Where the time of a step goes.

use super::metrics::Metrics;
use std::fmt::Write;

/// The parts of a step and their medians in milliseconds; what is left over is the
/// optimiser and everything else. Empty if steps were not timed.
fn parts(metrics: &Metrics) -> Vec<(&'static str, f64)> {
    let Some(step) = metrics.median("step_ms") else { return Vec::new() };
    let known =
        [("teacher", "teacher_ms"), ("student", "student_ms"), ("waiting for images", "data_wait_ms")];
    let mut parts: Vec<(&str, f64)> =
        known.into_iter().filter_map(|(name, key)| Some((name, metrics.median(key)?))).collect();
    let rest = step - parts.iter().map(|p| p.1).sum::<f64>();
    parts.push((if parts.len() > 1 { "optimiser and the rest" } else { "step" }, rest.max(0.0)));
    parts
}

/// A time for people: `120 ms`, `4.2 s`, `2 min 5 s`, `3 h 20 min`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// One bar cut into the parts of a step, with a legend; empty if steps were not timed.
pub(super) fn html(metrics: &Metrics) -> String {
    let parts = parts(metrics);
    let total: f64 = parts.iter().map(|p| p.1).sum();
    if total <= 0.0 {
        return String::new();
    }
    let (mut bar, mut legend) = (String::new(), String::new());
    for (i, (name, ms)) in parts.iter().enumerate() {
        let (share, time) = (100.0 * ms / total, duration(ms / 1e3));
        let _ = write!(bar, "<i class=\"c{i}\" style=\"width:{share:.2}%\" title=\"{name}: {time}\"></i>");
        let _ = write!(legend, "<span><i class=\"c{i}\"></i>{name} <b>{time}</b> {share:.0} %</span>");
    }
    format!(
        "<figure class=\"card wide\"><figcaption><b>Time of a step</b><span class=\"legend\">{legend}</span></figcaption>\
         <div class=\"stack\">{bar}</div><p class=\"says\">Medians over the logged steps; {} in all.</p></figure>\n",
        duration(total / 1e3)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let of: Vec<String> = [2e-5, 0.12, 4.21, 125.0, 12_000.0].map(duration).into();
        assert_eq!(of, ["20 µs", "120 ms", "4.2 s", "2 min 5 s", "3 h 20 min"]);
    }

    #[test]
    fn parts_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(
            &path,
            "{\"step\":1,\"step_ms\":100,\"data_wait_ms\":10,\"teacher_ms\":30,\"student_ms\":50}\n",
        )
        .unwrap();
        let m = Metrics::read(&path).unwrap();
        assert_eq!(parts(&m).iter().map(|p| p.1).collect::<Vec<_>>(), [30.0, 50.0, 10.0, 10.0]);
        assert!(html(&m).contains("width:50.00%"));
        std::fs::write(&path, "{\"step\":1,\"step_ms\":100,\"data_wait_ms\":10}\n").unwrap();
        assert_eq!(parts(&Metrics::read(&path).unwrap()), [("waiting for images", 10.0), ("step", 90.0)]);
        assert_eq!(html(&Metrics::default()), "");
    }
}
