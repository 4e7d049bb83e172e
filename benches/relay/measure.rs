//! Figures: what was measured how often, and what must be reached.

use std::fmt::Write;

/// What a figure must be.
#[derive(Clone, Copy)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// For information.
    None,
}

pub struct Figure {
    name: String,
    unit: &'static str,
    target: Target,
    samples: Vec<f64>,
}

impl Figure {
    fn median(&self) -> f64 {
        percentile(&self.samples, 0.5)
    }

    fn met(&self) -> Option<bool> {
        match self.target {
            Target::AtLeast(target) => Some(self.median() >= target),
            Target::AtMost(target) => Some(self.median() <= target),
            Target::None => None,
        }
    }
}

/// The figures of a run, in order. Each is told as soon as it is there.
pub struct Table {
    json: bool,
    figures: Vec<Figure>,
}

impl Table {
    pub fn new(json: bool) -> Table {
        Table { json, figures: Vec::new() }
    }

    /// Adds a figure: the median of the samples counts.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, target: Target, samples: Vec<f64>) {
        let figure = Figure { name: name.into(), unit, target, samples };
        eprintln!("  {}: {} {unit}", figure.name, number(figure.median()));
        self.figures.push(figure);
    }

    /// Whether a target was missed.
    pub fn missed(&self) -> bool {
        self.figures.iter().any(|figure| figure.met() == Some(false))
    }

    pub fn print(&self) {
        for figure in &self.figures {
            let (low, high) = (percentile(&figure.samples, 0.0), percentile(&figure.samples, 1.0));
            let target = match figure.target {
                Target::AtLeast(target) => format!("≥ {}", number(target)),
                Target::AtMost(target) => format!("≤ {}", number(target)),
                Target::None => String::new(),
            };
            if self.json {
                let line = serde_json::json!({
                    "name": figure.name, "unit": figure.unit, "target": target, "median": figure.median(),
                    "min": low, "max": high, "runs": figure.samples.len(), "met": figure.met(),
                });
                println!("{line}");
                continue;
            }
            let mut line = String::new();
            let verdict = figure.met().map_or("", |met| if met { "met" } else { "MISSED" });
            write!(
                line,
                "{:<58} {:>10} {:<14} {:<10} {:<7} {:>2} × {} … {}",
                figure.name,
                number(figure.median()),
                figure.unit,
                target,
                verdict,
                figure.samples.len(),
                number(low),
                number(high)
            )
            .unwrap();
            println!("{line}");
        }
    }
}

/// By nearest rank.
pub fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * (sorted.len() as f64 - 1.0)).round() as usize;
    sorted[rank]
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
