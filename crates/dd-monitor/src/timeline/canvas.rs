//! [`Canvas`]: what a picture is drawn on before it becomes a PNG.
//!
//! The drawing library needs no more than pixels and text. Text is rasterised from a font that travels with this crate
//! (a subset of DejaVu Sans, see `fonts/`), so that a picture looks the same on a machine without fonts, in a container.
//! Everything is drawn at twice the size and averaged down, which smooths lines as well as letters.

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
};

const FONT: &[u8] = include_bytes!("../../fonts/DejaVuSans-subset.ttf");

/// How much larger everything is drawn.
pub(super) const OVERSAMPLING: u32 = 2;

/// Why nothing could be drawn.
#[derive(Debug, thiserror::Error)]
pub(super) enum CanvasError {
    #[error("the font that travels with this crate is damaged")]
    Font,
    #[error("a picture of {0} by {1} points does not fit into memory")]
    Size(u32, u32),
    #[error("the PNG encoder says: {0}")]
    Encoder(#[from] png::EncodingError),
}

/// The pixels of a picture, red, green and blue, at [`OVERSAMPLING`] times its size.
pub(super) struct Pixels {
    colours: Vec<[u8; 3]>,
    width: u32,
    height: u32,
}

impl Pixels {
    /// White, for a picture of this size.
    pub(super) fn new(width: u32, height: u32) -> Result<Self, CanvasError> {
        let large = |side: u32| side.checked_mul(OVERSAMPLING);
        let count = |width: u32, height: u32| usize::try_from(width.checked_mul(height)?).ok();
        let size = large(width).zip(large(height));
        let sized = size.and_then(|(width, height)| Some((width, height, count(width, height)?)));
        let (wide, high, count) = sized.ok_or(CanvasError::Size(width, height))?;
        Ok(Self { colours: vec![[255; 3]; count], width: wide, height: high })
    }

    /// The picture as a PNG.
    pub(super) fn to_png(&self) -> Result<Vec<u8>, CanvasError> {
        let mut bytes = Vec::new();
        let mut encoder =
            png::Encoder::new(&mut bytes, self.width / OVERSAMPLING, self.height / OVERSAMPLING);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.averaged())?;
        writer.finish()?;
        Ok(bytes)
    }

    /// The picture at its size: each pixel the average of four.
    fn averaged(&self) -> Vec<u8> {
        let side = |length: u32| (0..length).step_by(2);
        let at =
            |x: u32, y: u32| self.place(i64::from(x), i64::from(y)).and_then(|place| self.colours.get(place));
        let mut bytes = Vec::with_capacity(self.colours.len() / 4 * 3);
        for y in side(self.height) {
            for x in side(self.width) {
                let four = [(x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)];
                let sum =
                    four.into_iter().filter_map(|(x, y)| at(x, y)).fold([0u16; 3], |[r, g, b], pixel| {
                        let [red, green, blue] = pixel.map(u16::from);
                        [r + red, g + green, b + blue]
                    });
                bytes.extend(sum.map(|channel| u8::try_from(channel / 4).unwrap_or(u8::MAX)));
            }
        }
        bytes
    }

    fn place(&self, x: i64, y: i64) -> Option<usize> {
        let (x, y) = (u32::try_from(x).ok()?, u32::try_from(y).ok()?);
        if x >= self.width || y >= self.height {
            return None;
        }
        usize::try_from(u64::from(y) * u64::from(self.width) + u64::from(x)).ok()
    }

    /// Lays colour over a pixel; outside of the picture is no error.
    fn blend(&mut self, (x, y): BackendCoord, (red, green, blue): (u8, u8, u8), alpha: f64) {
        let place = self.place(i64::from(x), i64::from(y));
        let Some(pixel) = place.and_then(|place| self.colours.get_mut(place)) else { return };
        for (channel, over) in pixel.iter_mut().zip([red, green, blue]) {
            let mixed = f64::from(*channel) * (1.0 - alpha) + f64::from(over) * alpha;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two bytes")]
            let mixed = mixed.round() as u8;
            *channel = mixed;
        }
    }
}

/// Draws into pixels.
pub(super) struct Canvas<'p> {
    pixels: &'p mut Pixels,
    font: FontRef<'static>,
}

impl<'p> Canvas<'p> {
    pub(super) fn new(pixels: &'p mut Pixels) -> Result<Self, CanvasError> {
        let font = FontRef::try_from_slice(FONT).map_err(|_| CanvasError::Font)?;
        Ok(Self { pixels, font })
    }

    /// The scale at which an em has this many pixels.
    fn scale(&self, size: f64) -> PxScale {
        let height = f64::from(self.font.height_unscaled());
        let em = f64::from(self.font.units_per_em().unwrap_or(2048.0));
        #[allow(clippy::cast_possible_truncation, reason = "a font's size")]
        let scale = (size * height / em) as f32;
        PxScale::from(scale)
    }

    /// How wide and high a text is.
    fn extent(&self, text: &str, size: f64) -> (f32, f32) {
        let font = self.font.as_scaled(self.scale(size));
        let width = text.chars().map(|letter| font.h_advance(font.glyph_id(letter))).sum();
        (width, font.height())
    }

    /// Hands out the covered pixels of a text, relative to its upper left corner.
    fn rasterise(&self, text: &str, size: f64, mut cover: impl FnMut(i32, i32, f32)) {
        let font = self.font.as_scaled(self.scale(size));
        let mut x = 0.0;
        for letter in text.chars() {
            let glyph = font.scaled_glyph(letter);
            let advance = font.h_advance(glyph.id);
            let mut glyph = glyph;
            glyph.position = ab_glyph::point(x, font.ascent());
            x += advance;
            let Some(outline) = font.outline_glyph(glyph) else { continue };
            let corner = outline.px_bounds().min;
            outline.draw(|px, py, coverage| {
                cover(whole(corner.x) + offset(px), whole(corner.y) + offset(py), coverage);
            });
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a pixel's place")]
fn whole(figure: f32) -> i32 {
    figure.round() as i32
}

fn offset(pixel: u32) -> i32 {
    i32::try_from(pixel).unwrap_or(i32::MAX)
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = CanvasError;

    fn get_size(&self) -> (u32, u32) {
        (self.pixels.width, self.pixels.height)
    }

    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<CanvasError>> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), DrawingErrorKind<CanvasError>> {
        Ok(())
    }

    fn draw_pixel(
        &mut self,
        point: BackendCoord,
        color: BackendColor,
    ) -> Result<(), DrawingErrorKind<CanvasError>> {
        self.pixels.blend(point, color.rgb, color.alpha);
        Ok(())
    }

    /// Fills row by row; the library's own way goes through a call per pixel.
    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Result<(), DrawingErrorKind<CanvasError>> {
        if !fill {
            return plotters_backend::rasterizer::draw_rect(self, upper_left, bottom_right, style, fill);
        }
        let color = style.color();
        for y in upper_left.1..=bottom_right.1 {
            for x in upper_left.0..=bottom_right.0 {
                self.pixels.blend((x, y), color.rgb, color.alpha);
            }
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        position: BackendCoord,
    ) -> Result<(), DrawingErrorKind<CanvasError>> {
        let (width, height) = self.extent(text, style.size());
        let (width, height) = (whole(width), whole(height));
        let anchor = style.anchor();
        let left = match anchor.h_pos {
            HPos::Left => 0,
            HPos::Center => -width / 2,
            HPos::Right => -width,
        };
        let top = match anchor.v_pos {
            VPos::Top => 0,
            VPos::Center => -height / 2,
            VPos::Bottom => -height,
        };
        let (color, transform) = (style.color(), style.transform());
        let mut covered = Vec::new();
        self.rasterise(text, style.size(), |x, y, coverage| covered.push((x, y, coverage)));
        for (x, y, coverage) in covered {
            let (x, y) = transform.transform(x + left, y + top);
            let alpha = color.alpha * f64::from(coverage.clamp(0.0, 1.0));
            self.pixels.blend((position.0 + x, position.1 + y), color.rgb, alpha);
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<CanvasError>> {
        let (width, height) = self.extent(text, style.size());
        let whole = |side: f32| u32::try_from(whole(side)).unwrap_or_default();
        Ok((whole(width), whole(height)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_has_every_letter_that_is_drawn() {
        let mut pixels = Pixels::new(10, 10).unwrap();
        let canvas = Canvas::new(&mut pixels).unwrap();
        let letters = (' '..='~').chain("°µ·×–—…≤≥".chars());
        for letter in letters {
            assert_ne!(canvas.font.glyph_id(letter).0, 0, "{letter:?}");
        }
    }

    #[test]
    fn text_covers_pixels_within_its_extent() {
        let mut pixels = Pixels::new(10, 10).unwrap();
        let canvas = Canvas::new(&mut pixels).unwrap();
        for text in ["budget 32.00 MiB", "µs ≤ 2.5", "I", "Ωab"] {
            let (width, height) = canvas.extent(text, 30.0);
            let mut count = 0;
            canvas.rasterise(text, 30.0, |x, y, coverage| {
                let inside = x >= -2 && y >= 0 && x as f32 <= width + 2.0 && y as f32 <= height + 1.0;
                assert!(inside && (0.0..=1.01).contains(&coverage), "{text}: {x}, {y}, {coverage}");
                count += u32::from(coverage > 0.5);
            });
            assert!(count > 20, "{text}: {count} pixels");
        }
    }

    #[test]
    fn a_picture_that_is_too_large_is_an_error() {
        assert!(matches!(Pixels::new(u32::MAX, 1), Err(CanvasError::Size(..))));
        assert!(matches!(Pixels::new(1 << 20, 1 << 20), Err(CanvasError::Size(..))));
    }
}
