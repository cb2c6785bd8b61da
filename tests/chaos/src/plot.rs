//! Draws an episode: throughput and latency in steps of 100 ms, with the faults marked. Only reads.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::ChaosError;
use crate::figures::quantile;
use crate::history::{Injection, Micros, Op, Traffic};

/// Length of a step, microseconds.
const STEP: Micros = 100_000;
const WIDTH: u32 = 1_400;
const HEIGHT: u32 = 820;
const FONT: &str = "sans-serif";
const DONE: RGBColor = RGBColor(24, 133, 72);
const LATE: RGBColor = RGBColor(31, 97, 181);
const ERROR: RGBColor = RGBColor(196, 53, 41);
const FAULT: RGBColor = RGBColor(240, 200, 120);
/// Faults whose words fit beside their marks.
const LABELS_MAX: usize = 24;

/// One step of the timeline.
#[derive(Debug, Clone, Default, PartialEq)]
struct Step {
    /// Writes that were acknowledged in it.
    acknowledged: u64,
    /// Calls that ended with an error in it.
    errors: u64,
    /// Latencies of answers in it, milliseconds.
    latencies: Vec<f64>,
}

/// Sorts calls into steps by when they ended.
fn steps(ops: &[Op]) -> Vec<Step> {
    let end = ops.iter().map(|op| op.end).max().unwrap_or(0);
    let count = usize::try_from(end / STEP).unwrap_or(0) + 1;
    let mut steps = vec![Step::default(); count];
    for op in ops.iter().filter(|op| op.traffic != Traffic::Probe) {
        let Some(step) = usize::try_from(op.end / STEP).ok().and_then(|position| steps.get_mut(position))
        else {
            continue;
        };
        if op.answer.is_error() {
            step.errors += 1;
        } else {
            step.acknowledged += u64::from(op.is_acknowledged_write());
            step.latencies.push(op.latency() as f64 / 1_000.0);
        }
    }
    steps
}

/// Writes the drawing of an episode.
///
/// # Errors
/// When it cannot be drawn or written.
pub fn write(title: &str, ops: &[Op], injections: &[Injection], path: &Path) -> Result<(), ChaosError> {
    let mut svg = String::new();
    draw(title, &steps(ops), injections, &mut svg)
        .map_err(|error| ChaosError::Plot { path: path.to_owned(), message: error.to_string() })?;
    std::fs::write(path, svg).map_err(ChaosError::system(format!("write {}", path.display())))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn seconds(at: Micros) -> f64 {
    at as f64 / 1_000_000.0
}

fn draw(
    title: &str,
    steps: &[Step],
    injections: &[Injection],
    svg: &mut String,
) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, (FONT, 20))?;
    let (upper, lower) = root.split_vertically(HEIGHT / 2 - 20);
    let end = seconds(steps.len() as Micros * STEP).max(1.0);
    throughput(&upper, steps, injections, end)?;
    latency(&lower, steps, injections, end)?;
    root.present()?;
    Ok(())
}

/// From a injection to its healing, or a moment that can be seen.
fn span(injection: &Injection) -> (f64, f64) {
    let until = injection.undone.or(injection.healed).unwrap_or(injection.at);
    (seconds(injection.at), seconds(until).max(seconds(injection.at) + 0.05))
}

fn throughput(
    area: &Area<'_>,
    steps: &[Step],
    injections: &[Injection],
    end: f64,
) -> Result<(), Box<dyn Error>> {
    let rate = |count: u64| count as f64 * 10.0;
    let top = steps.iter().map(|step| rate(step.acknowledged.max(step.errors))).fold(10.0, f64::max) * 1.25;
    let mut chart = ChartBuilder::on(area)
        .caption(
            "acknowledged writes (green) and errors (red) a second, in steps of 100 ms; shaded: harm is done",
            (FONT, 15),
        )
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    chart.configure_mesh().y_desc("per second").draw()?;
    chart.draw_series(injections.iter().map(|injection| {
        let (from, until) = span(injection);
        Rectangle::new([(from, 0.0), (until, top)], FAULT.mix(0.6).filled())
    }))?;
    if injections.len() <= LABELS_MAX {
        chart.draw_series(injections.iter().map(|injection| {
            Text::new(injection.what.clone(), (span(injection).0, top * 0.97), (FONT, 11).into_font())
        }))?;
    }
    let points = |value: fn(&Step) -> u64| {
        steps
            .iter()
            .enumerate()
            .map(move |(n, step)| (seconds(n as Micros * STEP), rate(value(step))))
            .collect::<Vec<_>>()
    };
    chart.draw_series(LineSeries::new(points(|step| step.acknowledged), DONE.stroke_width(1)))?;
    chart.draw_series(LineSeries::new(points(|step| step.errors), ERROR.stroke_width(1)))?;
    Ok(())
}

fn latency(
    area: &Area<'_>,
    steps: &[Step],
    injections: &[Injection],
    end: f64,
) -> Result<(), Box<dyn Error>> {
    let mut chart = ChartBuilder::on(area)
        .caption("p99 latency of answers in each step, from when a call was due", (FONT, 15))
        .margin(10)
        .x_label_area_size(38)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end, (0.5..20_000.0_f64).log_scale())?;
    chart.configure_mesh().x_desc("seconds").y_desc("ms").y_label_formatter(&|ms| format!("{ms}")).draw()?;
    chart.draw_series(injections.iter().map(|injection| {
        let (from, until) = span(injection);
        Rectangle::new([(from, 0.5), (until, 20_000.0)], FAULT.mix(0.6).filled())
    }))?;
    let points =
        steps.iter().enumerate().filter(|(_, step)| !step.latencies.is_empty()).map(|(n, step)| {
            (seconds(n as Micros * STEP), quantile(&step.latencies, 0.99).clamp(0.5, 20_000.0))
        });
    chart.draw_series(LineSeries::new(points, LATE.stroke_width(1)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::check::example::{buy, op, ticket, yes};
    use crate::history::Answer;

    #[test]
    fn calls_fall_into_the_step_in_which_they_end() {
        let ops = [
            op(buy("e"), (0, 50_000), yes(ticket("t"), 1)),
            op(buy("e"), (0, 250_000), Answer::Unknown("late".into())),
            op(buy("e"), (0, 299_999), Answer::No("SOLD_OUT".into())),
        ];
        let steps = steps(&ops);
        assert_eq!(steps.len(), 3);
        assert_eq!((steps[0].acknowledged, steps[0].latencies.as_slice()), (1, &[50.0][..]));
        assert_eq!((steps[2].acknowledged, steps[2].errors, steps[2].latencies.len()), (0, 1, 1));
    }

    #[test]
    fn a_drawing_marks_the_faults() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.svg");
        let injection = Injection {
            at: 100_000,
            what: "SIGKILL node 2".into(),
            regions: Vec::new(),
            undone: Some(900_000),
            healed: None,
        };
        let ops = [op(buy("e"), (0, 1_500_000), yes(ticket("t"), 1))];
        write("leader-kill", &ops, &[injection], &path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("SIGKILL node 2") && svg.contains("leader-kill"));
        write("nothing", &[], &[], &path).unwrap();
    }
}
