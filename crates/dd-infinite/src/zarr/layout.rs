//! Where things are called what: ids to folders, window indices to chunks, and back.

use xxhash_rust::xxh3::xxh3_128;

/// What every array's description, and the group's, is called.
pub(super) const DESCRIPTION: &str = "zarr.json";

/// What is behind the name of a tensor's second array. No folder of an id ends so: its escapes are in upper case.
pub(super) const FAR: &str = "=far";

/// The length of the near array along each coordinate of the index.
const NEAR_LEN: u64 = 1 << 52;

/// The length of the far array along each of the two halves of a coordinate.
const HALF_LEN: u64 = 1 << 32;

/// The longest name that an id is spelt out in.
const SPELT_OUT: usize = 120;

/// How much of a longer one is kept before its hash.
const KEPT: usize = 80;

/// Which of a tensor's two arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// One dimension per coordinate.
    Near,
    /// Two dimensions per coordinate, for indices that no other reader could address otherwise.
    Far,
}

impl Part {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Near, Self::Far];

    /// The folder of this array of a tensor.
    pub(super) fn folder(self, tensor: &str) -> String {
        match self {
            Self::Near => tensor.to_owned(),
            Self::Far => format!("{tensor}{FAR}"),
        }
    }

    /// The lengths of the dimensions that stand for the index.
    pub(super) fn grid(self, index_rank: usize) -> Vec<u64> {
        match self {
            Self::Near => vec![NEAR_LEN; index_rank],
            Self::Far => vec![HALF_LEN; index_rank * 2],
        }
    }
}

/// The folder of a tensor's near array.
pub(super) fn folder(id: &str) -> String {
    let mut name = String::with_capacity(id.len());
    for (at, byte) in id.bytes().enumerate() {
        let inner = at > 0 && matches!(byte, b'.' | b'_') && id != DESCRIPTION;
        if byte.is_ascii_alphanumeric() || byte == b'-' || inner {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("={byte:02X}"));
        }
    }
    if name.len() > SPELT_OUT {
        name.truncate(KEPT); // All of it is ASCII.
        name.push_str(&format!("=h{:032x}", xxh3_128(id.as_bytes())));
    }
    name
}

/// A window's array, and its position there.
pub(super) fn position(index: &[i64]) -> (Part, Vec<u64>) {
    let folded: Vec<u64> = index.iter().map(|i| fold(*i)).collect();
    if folded.iter().all(|z| *z < NEAR_LEN) {
        return (Part::Near, folded);
    }
    (Part::Far, folded.iter().flat_map(|z| [z >> 32, z & (HALF_LEN - 1)]).collect())
}

/// A chunk's name in its array's folder: `c.3.0.0.0` for position (3, 0) of windows of rank 2.
pub(super) fn chunk_name(position: &[u64], window_rank: usize) -> String {
    let mut name = "c".to_owned();
    let zeros = std::iter::repeat_n(&0, window_rank);
    for coordinate in position.iter().chain(zeros) {
        name.push('.');
        name.push_str(&coordinate.to_string());
    }
    name
}

/// The index of the window that a file holds; nothing where it is no chunk of such an array.
pub(super) fn index_of(name: &str, part: Part, index_rank: usize, window_rank: usize) -> Option<Vec<i64>> {
    let numbers: Vec<u64> = match name.strip_prefix('c')? {
        "" => Vec::new(),
        rest => rest.strip_prefix('.')?.split('.').map(number).collect::<Option<_>>()?,
    };
    let held = part.grid(index_rank).len();
    let (position, zeros) = numbers.split_at_checked(held)?;
    if zeros.len() != window_rank || zeros.iter().any(|zero| *zero != 0) {
        return None;
    }
    let folded: Option<Vec<u64>> = match part {
        Part::Near => position.iter().map(|z| (*z < NEAR_LEN).then_some(*z)).collect(),
        Part::Far => position.as_chunks::<2>().0.iter().map(|[high, low]| join(*high, *low)).collect(),
    };
    let index: Vec<i64> = folded?.into_iter().map(unfold).collect();
    // What is not where it would be put was not put by a store.
    (self::position(&index).0 == part).then_some(index)
}

fn join(high: u64, low: u64) -> Option<u64> {
    (high < HALF_LEN && low < HALF_LEN).then_some((high << 32) | low)
}

/// A number as it is written in a name: digits without a leading zero.
fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// 0, −1, 1, −2, … to 0, 1, 2, 3, …
const fn fold(i: i64) -> u64 {
    ((i << 1) ^ (i >> 63)).cast_unsigned()
}

const fn unfold(z: u64) -> i64 {
    (z >> 1).cast_signed() ^ -((z & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn coordinates_fold_as_the_scheme_says() {
        let rows = [(0, 0), (-1, 1), (1, 2), (-2, 3), (2, 4), (i64::MAX, u64::MAX - 1), (i64::MIN, u64::MAX)];
        for (i, z) in rows {
            assert_eq!((fold(i), unfold(z)), (z, i));
        }
    }

    #[test]
    fn names_of_chunks_that_are_none() {
        for name in [
            "",
            "c.",
            "c.1",
            "c.1.2",
            "c.1.0.0",
            "c.01.0",
            "c.+1.0",
            "d.1.0",
            "c.1.1",
            "c.9007199254740992.0",
            "zarr.json",
        ] {
            assert_eq!(index_of(name, Part::Near, 1, 1), None, "{name}");
        }
        assert_eq!(index_of("c.1.0", Part::Near, 1, 1), Some(vec![-1]));
        assert_eq!(index_of("c.0.5.0", Part::Far, 1, 1), None, "it belongs in the near array");
        assert_eq!(index_of("c.4294967295.4294967295.0", Part::Far, 1, 1), Some(vec![i64::MIN]));
        assert_eq!(index_of("c", Part::Near, 0, 0), Some(vec![]));
    }

    #[test]
    fn folders_are_plain_names() {
        let long = "x".repeat(512);
        let rows = [
            ("noise", "noise"),
            ("a/b", "a=2Fb"),
            ("..", "=2E."),
            ("_far", "=5Ffar"),
            ("ü ", "=C3=BC=20"),
            ("a=far", "a=3Dfar"),
            ("zarr.json", "zarr=2Ejson"),
        ];
        for (id, expected) in rows {
            assert_eq!(folder(id), expected);
        }
        assert!(folder(&long).starts_with(&"x".repeat(KEPT)) && folder(&long).len() == KEPT + 2 + 32);
        assert_ne!(folder(&long), folder(&"x".repeat(511)));
    }

    proptest! {
        #[test]
        fn every_index_has_a_place_of_its_own(index in prop::collection::vec(any::<i64>(), 0..4), rank in 0usize..3) {
            let (part, at) = position(&index);
            let name = chunk_name(&at, rank);
            prop_assert_eq!(index_of(&name, part, index.len(), rank), Some(index));
        }

        #[test]
        fn no_two_ids_share_a_folder(a in "\\PC{1,40}", b in "\\PC{1,40}") {
            prop_assert_eq!(a == b, folder(&a) == folder(&b));
            prop_assert!(!folder(&a).ends_with(FAR) && !folder(&a).contains('/') && !folder(&a).starts_with('.'));
        }

        #[test]
        fn hostile_names_never_panic(name in "c?[.0-9]{0,60}", k in 0usize..4, r in 0usize..4) {
            for part in Part::ALL {
                let _index = index_of(&name, part, k, r);
            }
        }
    }
}
