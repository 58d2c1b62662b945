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

    /// The value that this share of all is not above, by nearest rank.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank in a list"
    )]
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or(f64::NAN)
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
        let hundred = Figures((1..=100).map(f64::from).collect());
        assert!((hundred.percentile(0.95) - 95.0).abs() < 1e-9);
        assert!((hundred.percentile(0.5) - 50.0).abs() < 1e-9);
    }
}
