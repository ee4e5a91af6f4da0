//! Weights from a counter: the same for everyone, without a state, and at any place of a tensor.
//!
//! Value `i` of tensor `t` is a hash of `(t, i)`: the finaliser of SplitMix64 (Steele, Lea, Flood, *Fast Splittable
//! Pseudorandom Number Generators*, 2014). Matrices are uniform with the variance of 1 / width, so that states keep
//! their size from layer to layer; norms are the identity; biases are small.

use crate::bert::Config;

/// The values of one tensor, first to last; endless.
pub fn counted_weights(tensor: u64, name: &str, config: &Config) -> impl Iterator<Item = f32> + use<> {
    let (centre, spread) = distribution(name, config);
    uniform(tensor).map(move |number| centre + spread * number)
}

/// Numbers in -1..1, the same for the same seed; endless.
pub(crate) fn uniform(seed: u64) -> impl Iterator<Item = f32> {
    let seed = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
    (0u64..).map(move |index| unit(mix(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
}

/// Centre and half width of a tensor's values.
fn distribution(name: &str, config: &Config) -> (f32, f32) {
    #[allow(clippy::cast_possible_truncation, reason = "a scale needs no more than 24 bits")]
    let scale = |width: usize| (3.0 / width as f64).sqrt() as f32;
    if name.ends_with("LayerNorm.weight") {
        (1.0, 0.0)
    } else if name.ends_with("bias") {
        (0.0, 0.02)
    } else if name.contains("embeddings") {
        (0.0, 1.0)
    } else if name.ends_with("output.dense.weight") && !name.contains("attention") {
        (0.0, scale(config.intermediate_size))
    } else {
        (0.0, scale(config.hidden_size))
    }
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The top 24 bits as a number in -1..1.
fn unit(bits: u64) -> f32 {
    #[allow(clippy::cast_precision_loss, reason = "24 bits fit an f32 exactly")]
    let top = (bits >> 40) as f32;
    top / 8_388_608.0 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::config;

    #[test]
    fn values_are_repeatable_centred_and_within_bounds() {
        let config = config(64, 4, 256, 1);
        let name = "encoder.layer.0.output.dense.weight";
        let values: Vec<f32> = counted_weights(3, name, &config).take(10_000).collect();
        assert_eq!(values, counted_weights(3, name, &config).take(10_000).collect::<Vec<_>>());
        assert_ne!(values, counted_weights(4, name, &config).take(10_000).collect::<Vec<_>>());
        let bound = (3.0f32 / 256.0).sqrt();
        assert!(values.iter().all(|v| v.abs() <= bound));
        let mean = values.iter().sum::<f32>() / 10_000.0;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / 10_000.0;
        assert!(mean.abs() < 0.01 && (variance * 256.0 - 1.0).abs() < 0.1, "{mean} {variance}");
    }
}
