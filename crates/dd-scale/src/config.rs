//! [`ScalingConfig`]: every option of scaling, validated when it is built and immutable afterwards.

use std::fmt;
use std::str::FromStr;

use dd_core::{Bytes, Device};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::family::PowerLaw;

/// Which member of the family d' = min(d, κ·d^γ); written as `"linear"`, `"exponential"` or the number γ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub enum Strategy {
    /// γ = 1: every dimension by the same factor.
    #[default]
    Linear,
    /// γ = ½: larger dimensions by more.
    Exponential,
    /// Another γ.
    Power(PowerLaw),
}

impl Strategy {
    /// The strategy itself.
    #[must_use]
    pub const fn power_law(self) -> PowerLaw {
        match self {
            Self::Linear => PowerLaw::LINEAR,
            Self::Exponential => PowerLaw::EXPONENTIAL,
            Self::Power(law) => law,
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear => f.pad("linear"),
            Self::Exponential => f.pad("exponential"),
            Self::Power(law) => f.pad(&law.gamma().to_string()),
        }
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "linear" => Ok(Self::Linear),
            "exponential" => Ok(Self::Exponential),
            other => {
                let law = other.parse().ok().and_then(|gamma| PowerLaw::new(gamma).ok());
                let reason = "expected linear, exponential, or a number γ from 0 to 8";
                law.map(Self::Power).ok_or_else(|| Error::setting("strategy", format!("{text:?}"), reason))
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Gamma(f64),
    Name(String),
}

impl From<Strategy> for Form {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Power(law) => Self::Gamma(law.gamma()),
            named => Self::Name(named.to_string()),
        }
    }
}

impl TryFrom<Form> for Strategy {
    type Error = Error;

    fn try_from(form: Form) -> Result<Self> {
        match form {
            Form::Gamma(gamma) => gamma.to_string().parse(),
            Form::Name(name) => name.parse(),
        }
    }
}

macro_rules! options {
    ($($(#[$doc:meta])* $name:ident($given:ty): $type:ty = $default:expr;)*) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Options { $($name: $type,)* }

        impl Default for Options {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl ScalingConfig {
            $($(#[$doc])*
            #[must_use]
            pub const fn $name(&self) -> &$type {
                &self.0.$name
            })*
        }

        impl ScalingConfigBuilder {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(mut self, value: $given) -> Self {
                self.0.$name = value.into();
                self
            })*
        }
    };
}

/// How sizes are to be chosen. Read with the methods named like the options; made with [`builder`](Self::builder) or
/// serde. One that exists is consistent by itself; that its lists have one entry per dimension is checked when a tensor
/// is scaled.
///
/// ```
/// use dd_core::Bytes;
/// use dd_scale::{ScalingConfig, Strategy};
///
/// let config = ScalingConfig::builder().memory_threshold(0.7).strategy(Strategy::Exponential).build()?;
/// assert_eq!(config.target(Bytes(1000)), Bytes(600)); // 0.7 less the margin of 0.1
/// assert!(ScalingConfig::builder().memory_threshold(0.95).safety_margin(0.1).build().is_err());
/// # Ok::<(), dd_scale::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Options", into = "Options")]
pub struct ScalingConfig(Options);

/// Builds a [`ScalingConfig`]; options that are not set keep their defaults.
#[derive(Clone, Debug, Default)]
pub struct ScalingConfigBuilder(Options);

options! {
    /// The share (above 0, at most 1) of what is available that may be taken, before the margin. Default 0.8.
    memory_threshold(f64): f64 = 0.8;
    /// The share (from 0, below the threshold) that is kept free of it. Threshold and margin together are at most 1.
    /// Default 0.1.
    safety_margin(f64): f64 = 0.1;
    /// Where tensors are to be. Default `auto`: the backend's nearest tier.
    device(Device): Device = Device::Auto;
    /// How the loss is shared among the dimensions. Default linear.
    strategy(Strategy): Strategy = Strategy::Linear;
    /// The backend that is expected, by its name; default `auto`: any.
    framework(impl Into<String>): String = "auto".to_owned();
    /// The least size of every dimension; default 1 each. Holds also when nothing needs scaling.
    min_dimensions(impl Into<Option<Vec<usize>>>): Option<Vec<usize>> = None;
    /// The largest size of every dimension; default: the wished one, or none where growing is asked for. Holds also when
    /// nothing needs scaling.
    max_dimensions(impl Into<Option<Vec<usize>>>): Option<Vec<usize>> = None;
    /// What every dimension is a multiple of; default 1 each. Holds also when nothing needs scaling.
    steps(impl Into<Option<Vec<usize>>>): Option<Vec<usize>> = None;
    /// The dimensions (counted from zero) that keep their size whatever the other options say. Default none.
    frozen(impl Into<Vec<usize>>): Vec<usize> = Vec::new();
    /// Whether dimensions grow beyond what was wished, in its proportions, where there is room. Default false.
    maximize(bool): bool = false;
}

impl ScalingConfig {
    /// A builder with the defaults.
    #[must_use]
    pub fn builder() -> ScalingConfigBuilder {
        ScalingConfigBuilder::default()
    }

    /// A builder that starts from this configuration.
    #[must_use]
    pub fn to_builder(&self) -> ScalingConfigBuilder {
        ScalingConfigBuilder(self.0.clone())
    }

    /// The share of what is available that sizes are fitted into: threshold − margin.
    #[must_use]
    pub fn target_fraction(&self) -> f64 {
        self.0.memory_threshold - self.0.safety_margin
    }

    /// The effective target: available × (threshold − margin), rounded down.
    #[must_use]
    pub fn target(&self, available: Bytes) -> Bytes {
        available.scaled(self.target_fraction()).min(available)
    }
}

impl ScalingConfigBuilder {
    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Setting`] for shares out of range, [`Error::Entry`] for a bound or step that is zero, a least size above
    /// the largest or a dimension frozen twice, and [`Error::Rank`] for lists of different lengths.
    pub fn build(self) -> Result<ScalingConfig> {
        check(&self.0)?;
        Ok(ScalingConfig(self.0))
    }
}

impl TryFrom<Options> for ScalingConfig {
    type Error = Error;

    fn try_from(options: Options) -> Result<Self> {
        ScalingConfigBuilder(options).build()
    }
}

impl From<ScalingConfig> for Options {
    fn from(config: ScalingConfig) -> Self {
        config.0
    }
}

fn check(options: &Options) -> Result<()> {
    check_shares(options.memory_threshold, options.safety_margin)?;
    if options.framework.trim().is_empty() {
        return Err(Error::setting(
            "framework",
            "\"\"",
            "expected auto or a backend's name, such as host or candle",
        ));
    }
    let lists = [
        ("min_dimensions", &options.min_dimensions),
        ("max_dimensions", &options.max_dimensions),
        ("steps", &options.steps),
    ];
    let mut first: Option<&Vec<usize>> = None;
    for (option, list) in lists {
        let Some(list) = list else { continue };
        check_list(option, list)?;
        check_rank(option, list, first.unwrap_or(list))?;
        first = first.or(Some(list));
    }
    if let (Some(min), Some(max)) = (&options.min_dimensions, &options.max_dimensions) {
        for (index, (min, max)) in min.iter().zip(max).enumerate() {
            if min > max {
                let reason = format!("above the largest, max_dimensions[{index}] = {max}");
                return Err(Error::Entry { option: "min_dimensions", index, value: *min, reason });
            }
        }
    }
    for (index, value) in options.frozen.iter().enumerate() {
        if options.frozen.iter().take(index).any(|earlier| earlier == value) {
            let reason = "this dimension is frozen already; name it once".to_owned();
            return Err(Error::Entry { option: "frozen", index, value: *value, reason });
        }
    }
    Ok(())
}

fn check_shares(threshold: f64, margin: f64) -> Result<()> {
    if !(threshold > 0.0 && threshold <= 1.0) {
        return Err(Error::setting("memory_threshold", threshold, "expected above 0 and at most 1"));
    }
    if !(0.0..1.0).contains(&margin) {
        return Err(Error::setting("safety_margin", margin, "expected at least 0 and below 1"));
    }
    // One bit of rounding is no contradiction: 0.9 + 0.1 is one.
    if threshold + margin > 1.0 + f64::EPSILON {
        let (value, reason) = (threshold + margin, "together they are at most 1; lower one of them");
        return Err(Error::setting("memory_threshold + safety_margin", value, reason));
    }
    if margin >= threshold {
        let reason = format!("nothing is left of memory_threshold {threshold}; give a smaller margin");
        return Err(Error::setting("safety_margin", margin, reason));
    }
    Ok(())
}

fn check_list(option: &'static str, list: &[usize]) -> Result<()> {
    if list.is_empty() {
        return Err(Error::setting(
            option,
            "[]",
            "expected one entry per dimension; leave it out for no bound",
        ));
    }
    match list.iter().position(|value| *value == 0) {
        None => Ok(()),
        Some(index) => {
            Err(Error::Entry { option, index, value: 0, reason: "expected at least 1".to_owned() })
        }
    }
}

/// Checks that a list has one entry per dimension.
pub(crate) fn check_rank(option: &'static str, list: &[usize], dims: &[usize]) -> Result<()> {
    if list.len() == dims.len() {
        return Ok(());
    }
    let index = list.len().min(dims.len());
    let value = list.get(index).or_else(|| dims.get(index)).copied().unwrap_or(0);
    Err(Error::Rank { option, expected: dims.len(), found: list.len(), index, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_checked() {
        let rows = [
            (1.0, 0.0, ""),
            (0.9, 0.1, ""),
            (0.8, 0.1, ""),
            (0.7, 0.3, ""),
            (0.0, 0.0, "memory_threshold is 0"),
            (-0.1, 0.0, "memory_threshold is -0.1"),
            (1.1, 0.0, "memory_threshold is 1.1"),
            (f64::NAN, 0.0, "memory_threshold is NaN"),
            (0.8, -0.1, "safety_margin is -0.1"),
            (0.8, f64::NAN, "safety_margin is NaN"),
            (0.95, 0.1, "memory_threshold + safety_margin is 1.05"),
            (0.4, 0.4, "safety_margin is 0.4"),
        ];
        for (threshold, margin, message) in rows {
            let built = ScalingConfig::builder().memory_threshold(threshold).safety_margin(margin).build();
            let found = built.map_or_else(|error| error.to_string(), |_| String::new());
            assert!(found.starts_with(message) && found.is_empty() == message.is_empty(), "{found}");
        }
    }

    #[test]
    fn lists_are_checked_with_index_and_value() {
        let build = |min: &[usize], max: &[usize], steps: &[usize], frozen: &[usize]| {
            let some = |list: &[usize]| (list != [9, 9, 9, 9]).then(|| list.to_vec());
            ScalingConfig::builder()
                .min_dimensions(some(min))
                .max_dimensions(some(max))
                .steps(some(steps))
                .frozen(frozen)
                .build()
                .map_or_else(|error| error.to_string(), |_| String::new())
        };
        let none: &[usize] = &[9, 9, 9, 9];
        let rows = [
            (build(&[1, 2], &[1, 2], &[8, 8], &[0]), ""),
            (build(&[5, 7], &[5, 6], none, &[]), "min_dimensions[1] is 7"),
            (build(&[], none, none, &[]), "min_dimensions is []"),
            (build(none, &[4, 0], none, &[]), "max_dimensions[1] is 0"),
            (build(none, none, &[0], &[]), "steps[0] is 0"),
            (
                build(&[1, 2], &[1, 2, 33], none, &[]),
                "max_dimensions has 3 entries for 2 dimensions: entry 2 (33)",
            ),
            (build(none, &[1, 2], &[8], &[]), "steps has 1 entries for 2 dimensions: entry 1 (2)"),
            (build(none, none, none, &[1, 1]), "frozen[1] is 1"),
        ];
        for (found, message) in rows {
            assert!(found.starts_with(message) && found.is_empty() == message.is_empty(), "{found:?}");
        }
    }

    #[test]
    fn serde_round_trips_and_checks() {
        let config = ScalingConfig::builder()
            .strategy("0.7".parse().unwrap())
            .device(Device::Cuda(1))
            .steps(vec![8, 8, 1])
            .frozen([2])
            .maximize(true)
            .build()
            .unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ScalingConfig>(&text).unwrap(), config, "{text}");
        let rows = [
            (r#"{"strategy":"exponential","framework":"candle"}"#, true),
            (r#"{"strategy":2}"#, true),
            (r#"{"strategy":"cubic"}"#, false),
            (r#"{"strategy":-1}"#, false),
            (r#"{"device":"tpu"}"#, false),
            (r#"{"memory_threshold":2.0}"#, false),
            (r#"{"min_dimensions":[4],"max_dimensions":[3]}"#, false),
            (r#"{"unknown":1}"#, false),
            (r#"{"framework":" "}"#, false),
        ];
        for (text, good) in rows {
            assert_eq!(serde_json::from_str::<ScalingConfig>(text).is_ok(), good, "{text}");
        }
    }
}
