//! `deepdim tiles`: endless tensors on the command line.
//!
//! | module | what it holds |
//! |---|---|
//! | [`terrain`] | the demo's functions: heights, blur, relief |
//! | [`layers`] | the demo's tensors, each made from the one before |
//! | [`render`] | `deepdim tiles render`: a region of a layer as a PNG |
//! | [`inspect`] | `deepdim tiles inspect`: what a store on disk holds |

use clap::Subcommand;
use deep_dimensions::infinite;

use crate::error::CliError;

pub mod inspect;
pub mod layers;
pub mod render;
pub mod terrain;

/// `deepdim tiles`.
#[derive(Clone, Debug, Subcommand)]
pub enum TilesCommand {
    /// Draw a region of an endless terrain, in as little memory as you allow.
    Render(render::RenderArgs),
    /// Show which tensors and windows a tile store on disk holds.
    Inspect(inspect::InspectArgs),
}

impl From<infinite::Error> for CliError {
    fn from(error: infinite::Error) -> Self {
        let message = error.to_string();
        match error {
            infinite::Error::DoesNotFit { place, least, limit, .. } => Self::CannotFit {
                what: format!("the work in {place}"),
                needed: least,
                available: limit,
                remedy: format!("give at least --memory {}", least.0),
            },
            infinite::Error::Core { source } if source.is_out_of_memory() => match &*source {
                deep_dimensions::core::Error::OutOfMemory { place, needed, available } => Self::CannotFit {
                    what: place.clone(),
                    needed: *needed,
                    available: *available,
                    remedy: "give more with --memory".to_owned(),
                },
                other => Self::input("tiles", other, "give more with --memory"),
            },
            infinite::Error::Full { place, source, .. } => {
                Self::io("write to", place.as_ref(), std::io::Error::other(source))
            }
            infinite::Error::Store { operation, place, source, .. } => {
                Self::io(operation, place.as_ref(), std::io::Error::other(source))
            }
            _ => Self::input("tiles", message, "see deepdim tiles --help"),
        }
    }
}
