//! Draws a report: latency by percentile on logarithmic axes, throughput over time. Only reads the report.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::{LoadError, Report};

const SIZE: (u32, u32) = (960, 860);
const FONT: &str = "sans-serif";
const DECIDED: RGBColor = RGBColor(31, 97, 181);
const SOLD: RGBColor = RGBColor(24, 133, 72);
const UNDECIDED: RGBColor = RGBColor(196, 53, 41);

/// Writes the drawing to a file.
pub(crate) fn write(report: &Report, path: &Path) -> Result<(), LoadError> {
    let mut svg = String::new();
    draw(report, &mut svg)
        .map_err(|error| LoadError::Plot { path: path.to_owned(), message: error.to_string() })?;
    std::fs::write(path, svg).map_err(|source| LoadError::File {
        doing: "write",
        path: path.to_owned(),
        source,
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(report: &Report, svg: &mut String) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(&format!("Tidewall: {} ({})", report.kind, report.mode), (FONT, 20))?;
    let (upper, lower) = root.split_vertically(400);
    latency(report, &upper)?;
    throughput(report, &lower)?;
    root.present()?;
    Ok(())
}

/// Percentile p stands at 1 / (1 - p): each decade of the axis is one more nine.
fn nines(percentile: f64) -> f64 {
    1.0 / (1.0 - percentile / 100.0).max(0.000_05)
}

fn percentile_label(x: &f64) -> String {
    let percentile = 100.0 * (1.0 - 1.0 / x);
    let text = format!("{percentile:.4}");
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

fn latency(report: &Report, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    let points: Vec<(f64, f64)> =
        report.percentiles.iter().map(|point| (nines(point.percentile), point.ms.max(0.001))).collect();
    let lowest = points.iter().map(|(_, ms)| *ms).fold(f64::INFINITY, f64::min).min(1_000_000.0);
    let highest = points.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
    let range = (lowest / 1.5)..(highest * 1.5).max(lowest * 2.0);
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!("Latency of business answers: p50 {:.2} ms, p99 {:.2} ms", report.p50_ms, report.p99_ms),
            (FONT, 15),
        )
        .margin(12)
        .x_label_area_size(38)
        .y_label_area_size(70)
        .build_cartesian_2d((1.0..20_000.0_f64).log_scale(), range.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("ms")
        .x_label_formatter(&percentile_label)
        .y_label_formatter(&|ms| format!("{ms}"))
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), DECIDED.stroke_width(2)))?;
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, DECIDED.filled())))?;
    Ok(())
}

fn throughput(report: &Report, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    let end = report.timeline.last().map_or(1.0, |point| point.at_s).max(0.1);
    let top = report
        .timeline
        .iter()
        .map(|point| point.decided_per_second.max(point.undecided_per_second))
        .fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!(
                "Throughput: {:.0} purchases/s, {:.0} decisions/s",
                report.purchases_per_second, report.decided_per_second
            ),
            (FONT, 15),
        )
        .margin(12)
        .x_label_area_size(38)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end, 0.0..top * 1.1)?;
    chart.configure_mesh().x_desc("seconds").y_desc("per second").draw()?;
    type Pick = fn(&crate::TimelinePoint) -> f64;
    let series: [(&str, RGBColor, Pick); 3] = [
        ("decided", DECIDED, |point| point.decided_per_second),
        ("sold", SOLD, |point| point.sold_per_second),
        ("ended undecided", UNDECIDED, |point| point.undecided_per_second),
    ];
    for (label, colour, pick) in series {
        chart
            .draw_series(LineSeries::new(
                report.timeline.iter().map(|point| (point.at_s, pick(point))),
                colour.stroke_width(2),
            ))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 13))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{PercentilePoint, TimelinePoint};

    #[test]
    fn each_nine_is_one_decade() {
        assert!((nines(90.0) - 10.0).abs() < 1e-6);
        assert!((nines(99.9) - 1_000.0).abs() < 1e-6);
        assert!(nines(100.0).is_finite());
        assert_eq!(percentile_label(&100.0), "99 %");
        assert_eq!(percentile_label(&10_000.0), "99.99 %");
    }

    #[test]
    fn a_report_becomes_a_drawing_and_so_does_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let report = Report {
            kind: "flash-sale".to_owned(),
            percentiles: [(0.0, 0.4), (50.0, 2.0), (99.0, 80.0), (100.0, 900.0)]
                .map(|(percentile, ms)| PercentilePoint { percentile, ms })
                .to_vec(),
            timeline: (0..30)
                .map(|n| TimelinePoint {
                    at_s: f64::from(n) * 0.1,
                    decided_per_second: 500.0,
                    sold_per_second: f64::from(n),
                    undecided_per_second: 0.0,
                })
                .collect(),
            ..Report::default()
        };
        report.write_svg(&path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("flash-sale") && svg.contains("ended undecided"));
        assert_eq!(svg.matches("<circle").count(), 4, "one for each percentile");
        Report::default().write_svg(&path).unwrap();
        let missing = folder.path().join("no/such/folder.svg");
        let error = report.write_svg(&missing).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("folder.svg"), "{error}");
    }
}
