//! Figures with their spread.

/// Values of one kind, in the order they were measured.
#[derive(Debug, Default, Clone)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that half of the others are below.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// `median [min … max]`.
    pub(crate) fn show(&self, unit: &str) -> String {
        let min = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let max = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{:>8.1} {unit}  [{min:.1} … {max:.1}]", self.median())
    }

    /// The same for a column of a table: small values keep their digits.
    pub(crate) fn brief(&self, unit: &str) -> String {
        let min = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let max = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{:.2} {unit} [{min:.2} … {max:.2}]", self.median())
    }
}

#[cfg(test)]
mod tests {
    use super::Figures;

    #[test]
    fn the_middle_of_odd_and_even() {
        let figures = |values: &[f64]| Figures(values.to_vec()).median();
        assert!((figures(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((figures(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
