//! How far something is, for who waits at a terminal.

use std::io::IsTerminal as _;
use std::time::Duration;

use berth_image::{NoProgress, Progress, Transferred};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar, on a terminal only.
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    pub(crate) fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = "{spinner} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("the template is well formed"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(Some(bar))
    }

    pub(crate) fn progress(&self) -> &dyn Progress {
        if self.0.is_some() { self } else { &NoProgress }
    }

    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn update(&self, transferred: Transferred) {
        if let Some(bar) = &self.0 {
            bar.set_length(transferred.total);
            bar.set_position(transferred.done);
        }
    }
}

pub(crate) fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut divisor = 1u64;
    while bytes / divisor >= 1024 && unit + 1 < units.len() {
        unit += 1;
        divisor <<= 10;
    }
    if unit == 0 {
        return format!("{bytes}B");
    }
    let tenths = u128::from(bytes) * 10 / u128::from(divisor);
    format!("{}.{}{}", tenths / 10, tenths % 10, units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(human_bytes(0), "0B");
        assert_eq!(human_bytes(1023), "1023B");
        assert_eq!(human_bytes(1536), "1.5KiB");
        assert_eq!(human_bytes(u64::MAX), "16777215.9TiB");
    }
}
