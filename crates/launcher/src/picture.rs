//! The picture of a screen as a PNG. QEMU writes one from version 7.1 on, and a portable pixmap before.

/// How a PNG begins.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A PNG of what QEMU writes: a PNG already, or a binary portable pixmap (`P6`, one byte a colour).
pub(crate) fn png_of(pixmap: Vec<u8>) -> Result<Vec<u8>, String> {
    if pixmap.starts_with(PNG) {
        return Ok(pixmap);
    }
    let wrong = |what: &str| format!("the screen comes as no picture: {what}");
    let (width, height, points) =
        read(&pixmap).ok_or_else(|| wrong("it is neither a PNG nor a P6"))?;
    let wanted = u128::from(width) * u128::from(height) * 3;
    if width == 0 || height == 0 || points.len() as u128 != wanted {
        return Err(wrong(&format!(
            "{} bytes for {width} x {height} points",
            points.len()
        )));
    }
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(points));
    written.map_err(|error| error.to_string())?;
    Ok(out)
}

/// Width, height, and the points behind the header.
fn read(pixmap: &[u8]) -> Option<(u32, u32, &[u8])> {
    let mut rest = pixmap.strip_prefix(b"P6")?;
    let mut numbers = [0; 3];
    for number in &mut numbers {
        let blanks = rest.iter().take_while(|b| b.is_ascii_whitespace()).count();
        rest = &rest[blanks..];
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        *number = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
        rest = &rest[digits..];
    }
    let [width, height, most] = numbers;
    // One blank ends the header.
    let points = rest.get(1..)?;
    (most == 255).then_some((width, height, points))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_becomes_a_png() {
        let png = png_of(b"P6\n2 1\n255\n\xff\0\0\0\xff\0".to_vec()).unwrap();
        assert_eq!(png_of(png.clone()).as_ref(), Ok(&png));
        let mut reader = png::Decoder::new(std::io::Cursor::new(png))
            .read_info()
            .unwrap();
        let mut points = vec![0; 6];
        let info = reader.next_frame(&mut points).unwrap();
        assert_eq!((info.width, info.height), (2, 1));
        assert_eq!(points, [255, 0, 0, 0, 255, 0]);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for bad in [
            &b""[..],
            b"P5\n1 1\n255\n\0\0\0",
            b"P6\n1 1\n255\n",
            b"P6\n1 1\n65535\n\0\0\0",
            b"P6\n0 0\n255\n",
            b"P6\n4294967295 4294967295\n255\n\0",
            b"P6\n99999999999 1\n255\n",
        ] {
            assert!(png_of(bad.to_vec()).is_err(), "{bad:?}");
        }
    }
}
