//! [`Sizes`]: the numbers of a config that bound its memory, each checked.

use serde_json::{Map, Value};

use crate::error::{CliError, Result};
use crate::generate::family::Family;

/// The most that any size may be: products of three of them are far from 64 bits with any real file, and no real
/// model comes near it.
const MOST: u64 = 1 << 20;
/// The most layers.
const MOST_LAYERS: u64 = 4096;

/// The numbers that bound a model's memory; none is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Blocks; of an encoder and a decoder, those of the encoder.
    pub layers: usize,
    /// Blocks of the decoder beside an encoder; else zero.
    pub decoder_layers: usize,
    /// Width of the states.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub inner: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Words.
    pub vocab: usize,
    /// The most positions that the model knows; [`usize::MAX`] where there is no bound.
    pub positions: usize,
    /// The fewest positions that its tables can be made for.
    pub least_positions: usize,
    /// How far back the sliding layers look, where there are any.
    pub window: Option<usize>,
}

impl Sizes {
    pub(super) fn of(family: Family, fields: &Map<String, Value>, place: &str) -> Result<Self> {
        let fields = Fields { fields, place };
        let sizes = match family {
            Family::T5 => Self::of_t5(&fields)?,
            _ => Self::of_decoder(family, &fields)?,
        };
        fields.check(family, &sizes)?;
        Ok(sizes)
    }

    fn of_decoder(family: Family, fields: &Fields<'_>) -> Result<Self> {
        let heads = fields.size("num_attention_heads")?;
        let hidden = fields.size("hidden_size")?;
        let own_width = matches!(
            family,
            Family::Mistral | Family::Qwen3 | Family::Gemma | Family::Gemma2 | Family::Gemma3
        );
        let head_dim = match fields.optional("head_dim")? {
            Some(width) if own_width => width,
            _ => fields.quotient("hidden_size", hidden, "num_attention_heads", heads)?,
        };
        let kv_heads = match family {
            Family::Bert => heads,
            Family::Llama => fields.optional("num_key_value_heads")?.unwrap_or(heads),
            _ => fields.size("num_key_value_heads")?,
        };
        fields.quotient("num_attention_heads", heads, "num_key_value_heads", kv_heads)?;
        let scaled = family == Family::Phi3 && !fields.is_null("rope_scaling");
        let positions = fields.whole("max_position_embeddings", 1, 1 << 32)?;
        Ok(Self {
            layers: fields.whole("num_hidden_layers", 1, MOST_LAYERS)?,
            decoder_layers: 0,
            hidden,
            inner: fields.size("intermediate_size")?,
            heads,
            kv_heads,
            head_dim,
            vocab: fields.whole("vocab_size", 1, MOST << 4)?,
            positions,
            // Its table is two tables, the second from the original length on.
            least_positions: if scaled {
                fields.within("original_max_position_embeddings", positions)?
            } else {
                1
            },
            window: fields.optional_whole("sliding_window", 1 << 32)?,
        })
    }

    fn of_t5(fields: &Fields<'_>) -> Result<Self> {
        let heads = fields.size("num_heads")?;
        let layers = fields.whole("num_layers", 1, MOST_LAYERS)?;
        Ok(Self {
            layers,
            decoder_layers: fields.optional_whole("num_decoder_layers", MOST_LAYERS)?.unwrap_or(layers),
            hidden: fields.size("d_model")?,
            inner: fields.size("d_ff")?,
            heads,
            kv_heads: heads,
            head_dim: fields.size("d_kv")?,
            vocab: fields.whole("vocab_size", 1, MOST << 4)?,
            positions: usize::MAX,
            least_positions: 1,
            window: None,
        })
    }

    /// Width of all query heads together.
    #[must_use]
    pub const fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together.
    #[must_use]
    pub const fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// The fields of a file, with the file's name.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    place: &'a str,
}

impl Fields<'_> {
    fn wrong(&self, problem: String) -> CliError {
        CliError::input(self.place, problem, "take config.json and the weights from the same model")
    }

    fn is_null(&self, name: &str) -> bool {
        self.fields.get(name).is_none_or(Value::is_null)
    }

    fn size(&self, name: &str) -> Result<usize> {
        self.whole(name, 1, MOST)
    }

    /// A whole number within bounds.
    fn whole(&self, name: &str, least: u64, most: u64) -> Result<usize> {
        let Some(value) = self.fields.get(name).filter(|value| !value.is_null()) else {
            return Err(self.wrong(format!("{name} is missing")));
        };
        let number = value.as_u64().filter(|number| (least..=most).contains(number));
        number.and_then(|number| usize::try_from(number).ok()).ok_or_else(|| {
            self.wrong(format!("{name} is {value}, expected is a whole number of {least} to {most}"))
        })
    }

    fn optional(&self, name: &str) -> Result<Option<usize>> {
        self.optional_whole(name, MOST)
    }

    fn optional_whole(&self, name: &str, most: u64) -> Result<Option<usize>> {
        if self.is_null(name) { Ok(None) } else { self.whole(name, 1, most).map(Some) }
    }

    /// An optional number that is no more than another.
    fn within(&self, name: &str, most: usize) -> Result<usize> {
        let found = self.optional_whole(name, 1 << 32)?.unwrap_or(most);
        if found <= most {
            return Ok(found);
        }
        Err(self.wrong(format!("{name} is {found}, expected is at most {most}")))
    }

    fn quotient(&self, name: &str, value: usize, of: &str, divisor: usize) -> Result<usize> {
        if divisor > 0 && value.is_multiple_of(divisor) {
            return Ok(value / divisor);
        }
        Err(self.wrong(format!("{name} is {value}, which is no multiple of {of}, {divisor}")))
    }

    /// What else the library divides by, asserts or unwraps.
    fn check(&self, family: Family, sizes: &Sizes) -> Result<()> {
        if family != Family::T5 && family != Family::Bert {
            self.even("the width of a head", sizes.head_dim)?;
        }
        match family {
            Family::Gemma2 => self.size("query_pre_attn_scalar").map(drop),
            Family::Gemma3 => self.size("sliding_window_pattern").map(drop),
            Family::Phi3 | Family::StableLm => self.check_rotary(sizes.head_dim),
            Family::Qwen3 if self.fields.get("use_sliding_window") == Some(&Value::Bool(true)) => {
                Err(self.wrong("use_sliding_window is true, which the library does not do".to_owned()))
            }
            Family::T5 => {
                self.whole("relative_attention_num_buckets", 4, MOST)?;
                self.whole("relative_attention_max_distance", 1, MOST)?;
                match self.fields.get("is_encoder_decoder") {
                    Some(Value::Bool(true)) => Ok(()),
                    other => Err(self.wrong(format!("is_encoder_decoder is {other:?}, expected is true"))),
                }
            }
            _ => Ok(()),
        }
    }

    fn even(&self, what: &str, number: usize) -> Result<()> {
        if number.is_multiple_of(2) && number > 0 {
            return Ok(());
        }
        Err(self.wrong(format!("{what} is {number}, expected is an even number")))
    }

    /// The part of a head that is turned.
    fn check_rotary(&self, head_dim: usize) -> Result<()> {
        let Some(value) = self.fields.get("partial_rotary_factor").filter(|value| !value.is_null()) else {
            return Ok(());
        };
        let Some(factor) = value.as_f64().filter(|factor| *factor > 0.0 && *factor <= 1.0) else {
            return Err(
                self.wrong(format!("partial_rotary_factor is {value}, expected is a number of 0 to 1"))
            );
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as the library counts")]
        let turned = (head_dim as f64 * factor) as usize;
        self.even("partial_rotary_factor of the width of a head", turned)
    }
}
