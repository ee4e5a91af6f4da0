//! [`Feeder`]: what is read, how, and in which order; made by [`FeederBuilder`].

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use dd_core::error::Cause;
use dd_core::{Backend, Budget, DType, HostBackend, HostTensor, Observer, TensorDesc, Tier};

use crate::cache::Cache;
use crate::config::FeedConfig;
use crate::convert::{Conversion, Convert};
use crate::engine::{Engine, Settings};
use crate::epochs::Epochs;
use crate::error::{Error, Result};
use crate::forward::{ForwardSource, Windows};
use crate::order::{Order, Shuffle};
use crate::plan::FeedPlan;
use crate::shared::{Augment, Shared, Side, Source};
use crate::state::{FeedState, fingerprint};
use crate::stats::{Counters, ErrorPolicy, FeedStats};
use crate::stream::{Listed, Samples, Stream};

type Read = Box<dyn Fn(&String, &mut Samples<'_>) -> Result<(), Cause> + Send + Sync>;
/// What is made of one side of a batch.
pub(crate) type Apply<T, X> = Arc<dyn Fn(T) -> Result<X, Cause> + Send + Sync>;

/// One side as it is given to the builder.
#[derive(Default)]
struct Given {
    stream: Option<Arc<dyn Stream>>,
    list: Option<Vec<String>>,
    read: Option<Read>,
    convert: Option<Convert>,
    augment: Option<Arc<Augment>>,
}

/// Builds a [`Feeder`]. Inputs and outputs come from streams, or from lists of identities and functions that read one; or both together
/// from a source that only reads forward.
pub struct FeederBuilder {
    config: FeedConfig,
    budget: Option<Budget>,
    input: Given,
    output: Given,
    forward: Option<Arc<ForwardSource>>,
    shuffle: Shuffle,
    seed: u64,
    workers: usize,
    read_ahead: Option<usize>,
    ordered: bool,
    rank: u64,
    ranks: u64,
    cache: bool,
    policy: ErrorPolicy,
    observer: Option<Arc<dyn Observer>>,
    resume: Option<FeedState>,
}

impl FeederBuilder {
    /// The budget from which everything is reserved: shared with whatever else takes memory. Within it, the feed never takes more than its
    /// own `cpu_memory_limit`. Without one, that limit alone holds.
    #[must_use]
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// The identities of the inputs, to be read by [`read_input`](Self::read_input).
    #[must_use]
    pub fn input_list(mut self, list: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.input.list = Some(list.into_iter().map(Into::into).collect());
        self
    }

    /// The identities of the outputs, in the order of the inputs; those of the inputs, unless given.
    #[must_use]
    pub fn output_list(mut self, list: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.output.list = Some(list.into_iter().map(Into::into).collect());
        self
    }

    /// Reads one identity of the inputs and gives its samples, `one_read_count` of them.
    #[must_use]
    pub fn read_input(
        mut self,
        read: impl Fn(&str, &mut Samples<'_>) -> Result<(), Cause> + Send + Sync + 'static,
    ) -> Self {
        self.input.read = Some(Box::new(move |identity, samples| read(identity, samples)));
        self
    }

    /// The same for the outputs.
    #[must_use]
    pub fn get_output(
        mut self,
        read: impl Fn(&str, &mut Samples<'_>) -> Result<(), Cause> + Send + Sync + 'static,
    ) -> Self {
        self.output.read = Some(Box::new(move |identity, samples| read(identity, samples)));
        self
    }

    /// Inputs from a stream.
    #[must_use]
    pub fn inputs(mut self, stream: impl Stream + 'static) -> Self {
        self.input.stream = Some(Arc::new(stream));
        self
    }

    /// Outputs from a stream.
    #[must_use]
    pub fn outputs(mut self, stream: impl Stream + 'static) -> Self {
        self.output.stream = Some(Arc::new(stream));
        self
    }

    /// Inputs and outputs from a source that only reads forward. It wants [`Shuffle::Blocks`] or [`Shuffle::Window`], and memory for two
    /// windows beside the batches (with less, for one).
    #[must_use]
    pub fn forward(mut self, source: ForwardSource) -> Self {
        self.forward = Some(Arc::new(source));
        self
    }

    /// Inputs are stored as `U8` and delivered as floats.
    #[must_use]
    pub fn convert_input(mut self, convert: Convert) -> Self {
        self.input.convert = Some(convert);
        self
    }

    /// Outputs are stored as `U8` and delivered as floats.
    #[must_use]
    pub fn convert_output(mut self, convert: Convert) -> Self {
        self.output.convert = Some(convert);
        self
    }

    /// Changes each input sample in place before it is delivered: its dense bytes, and its own seed.
    #[must_use]
    pub fn augment_input(mut self, augment: impl Fn(&mut [u8], u64) + Send + Sync + 'static) -> Self {
        self.input.augment = Some(Arc::new(augment));
        self
    }

    /// Changes each output sample in place; its seed is that of the input sample.
    #[must_use]
    pub fn augment_output(mut self, augment: impl Fn(&mut [u8], u64) + Send + Sync + 'static) -> Self {
        self.output.augment = Some(Arc::new(augment));
        self
    }

    /// The order of samples, and the seed of all randomness. As listed, unless said otherwise.
    #[must_use]
    pub fn shuffle(mut self, shuffle: Shuffle, seed: u64) -> Self {
        (self.shuffle, self.seed) = (shuffle, seed);
        self
    }

    /// How many threads read ahead: two unless said otherwise. With none, a batch is read when it is asked for.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// The most batches in memory together, the caller's included: twice the threads and two, unless said otherwise. Never more than the
    /// memory limit allows.
    #[must_use]
    pub fn batches_in_memory(mut self, batches: usize) -> Self {
        self.read_ahead = Some(batches);
        self
    }

    /// Whether batches come in their order (as unless said otherwise) or as soon as they are read.
    #[must_use]
    pub fn ordered(mut self, ordered: bool) -> Self {
        self.ordered = ordered;
        self
    }

    /// Delivers the share of one of several ranks. All ranks must have the same configuration and seed.
    #[must_use]
    pub fn rank(mut self, rank: u64, ranks: u64) -> Self {
        (self.rank, self.ranks) = (rank, ranks);
        self
    }

    /// Whether what fits stays in memory for the next epoch, as unless said otherwise. A reader whose samples change from read to read
    /// without asking for [`Samples::seed`] must say no.
    #[must_use]
    pub fn cache(mut self, cache: bool) -> Self {
        self.cache = cache;
        self
    }

    /// What to do with an identity that cannot be read: stop, unless said otherwise.
    #[must_use]
    pub fn on_error(mut self, policy: ErrorPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Who is told of progress, batch by batch.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Shows a progress bar in the terminal.
    #[cfg(feature = "progress")]
    #[must_use]
    pub fn progress(self) -> Self {
        self.observer(Arc::new(crate::progress::ProgressBar::new()))
    }

    /// Goes on where a feed of the same samples, seed and order stood.
    #[must_use]
    pub fn resume(mut self, state: FeedState) -> Self {
        self.resume = Some(state);
        self
    }

    /// A feeder of plain bytes in host memory.
    ///
    /// # Errors
    /// [`Error::Setting`] for what is missing; [`Error::Mismatch`] for lists, shapes or types that do not belong together; the plan's
    /// errors; [`Error::State`] for a state of another feed.
    pub fn build(self) -> Result<Feeder<HostBackend>> {
        self.build_on(HostBackend::default(), Tier::Host)
    }

    /// A feeder whose batches are tensors of this backend. Where it lends its storage, samples are read straight into it.
    ///
    /// # Errors
    /// As [`build`](Self::build); [`dd_core::Error::UnsupportedTier`].
    pub fn build_on<B: Backend>(mut self, backend: B, tier: Tier) -> Result<Feeder<B>> {
        if !backend.tiers().contains(&tier) {
            let tiers: Vec<String> = backend.tiers().iter().map(ToString::to_string).collect();
            let (backend, available) = (backend.name().to_owned(), tiers.join(", "));
            return Err(dd_core::Error::UnsupportedTier { backend, tier, available }.into());
        }
        let plan = self.config.plan()?;
        let (streams, stored) = self.sources(&plan)?;
        let limit = plan.cpu_memory_limit;
        let budget = match &self.budget {
            Some(budget) => budget.child("feed", limit),
            None => Budget::new("feed", limit),
        };
        let given = [("input", &self.input, &plan.input), ("output", &self.output, &plan.output)];
        let mut sides = Vec::with_capacity(2);
        for ((name, given, delivered), stored) in given.into_iter().zip(stored) {
            sides.push(side(name, given, &stored, delivered)?);
        }
        let (Some(output), Some(input)) = (sides.pop(), sides.pop()) else {
            return Err(Error::setting("inputs", "missing", "expected two sides"));
        };
        let print = fingerprint(plan.identities, plan.one_read_count, self.shuffle);
        let start = self.start(&plan, print)?;
        let identity: Apply<B::Tensor, B::Tensor> = Arc::new(Ok);
        Ok(Feeder {
            inner: Inner {
                backend: Arc::new(backend),
                tier,
                plan,
                budget,
                streams,
                input,
                output,
                start,
                options: self,
                counters: Arc::default(),
            },
            apply_input: Arc::clone(&identity),
            apply_output: identity,
        })
    }

    /// The two streams (nothing for a source that only reads forward), and how their samples are stored.
    #[allow(clippy::type_complexity, reason = "two of each")]
    fn sources(
        &mut self,
        plan: &FeedPlan,
    ) -> Result<(Option<(Arc<dyn Stream>, Arc<dyn Stream>)>, [TensorDesc; 2])> {
        if let Some(source) = &self.forward {
            if self.input.is_given() || self.output.is_given() {
                let reason = "inputs and outputs come from it already; give no other";
                return Err(Error::setting("forward", "given", reason));
            }
            check_len("identities of the source", plan.identities, source.len())?;
            return Ok((None, [source.input().clone(), source.output().clone()]));
        }
        if self.output.list.is_none() && self.output.read.is_some() {
            self.output.list.clone_from(&self.input.list);
        }
        let inputs = self.input.take_stream("input_list", "read_input", &plan.input)?;
        let outputs = self.output.take_stream("output_list", "get_output", &plan.output)?;
        check_len("identities of the inputs", plan.identities, inputs.len())?;
        check_len("identities of the outputs", plan.identities, outputs.len())?;
        let stored = [inputs.desc().clone(), outputs.desc().clone()];
        Ok((Some((inputs, outputs)), stored))
    }

    fn start(&self, plan: &FeedPlan, fingerprint: u64) -> Result<FeedState> {
        let Some(state) = self.resume else {
            return Ok(FeedState { epoch: 0, position: 0, seed: self.seed, fingerprint });
        };
        let other = |what: &str, expected: u64, found: u64| Error::State {
            reason: format!("the state is of a feed with {what} {found}, and this one has {expected}"),
        };
        if state.seed != self.seed {
            return Err(other("seed", self.seed, state.seed));
        }
        if state.fingerprint != fingerprint {
            let what = "another number of identities or variations, or another shuffle: fingerprint";
            return Err(other(what, fingerprint, state.fingerprint));
        }
        if state.position >= plan.identities {
            let reason = format!("position {} of {} identities", state.position, plan.identities);
            return Err(Error::State { reason });
        }
        Ok(state)
    }
}

impl Given {
    const fn is_given(&self) -> bool {
        self.stream.is_some() || self.list.is_some() || self.read.is_some()
    }

    fn take_stream(
        &mut self,
        list: &'static str,
        read: &'static str,
        delivered: &TensorDesc,
    ) -> Result<Arc<dyn Stream>> {
        if let Some(stream) = self.stream.take() {
            return Ok(stream);
        }
        let missing = |option| Error::setting(option, "missing", "give both list and reader, or a stream");
        let identities = self.list.take().ok_or_else(|| missing(list))?;
        let reader = self.read.take().ok_or_else(|| missing(read))?;
        let dtype = if self.convert.is_some() { DType::U8 } else { delivered.dtype() };
        let desc = TensorDesc::new(delivered.shape(), dtype)?;
        Ok(Arc::new(Listed::new(identities, desc, reader)))
    }
}

fn check_len(what: &str, expected: u64, found: u64) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::mismatch(what, format!("{expected} (total_sample_count)"), found))
}

fn side(name: &'static str, given: &Given, stored: &TensorDesc, delivered: &TensorDesc) -> Result<Side> {
    if stored.shape() != delivered.shape() {
        let what = format!("shape of an {name} sample");
        return Err(Error::mismatch(
            what,
            format!("{:?}", delivered.shape()),
            format!("{:?}", stored.shape()),
        ));
    }
    Ok(Side {
        conversion: Conversion::new(name, given.convert, stored.dtype(), delivered.dtype())?,
        stored: stored.len_in_memory()?,
        row: delivered.len_in_memory()?,
        augment: given.augment.clone(),
        cache: None,
    })
}

/// Gives epochs of batches. `X` and `Y` are what [`apply_on_input_batch`](Self::apply_on_input_batch) and
/// [`apply_on_output_batch`](Self::apply_on_output_batch) make of a batch's tensors: the tensors themselves, unless said otherwise.
pub struct Feeder<B: Backend = HostBackend, X = <B as Backend>::Tensor, Y = <B as Backend>::Tensor> {
    inner: Inner<B>,
    apply_input: Apply<B::Tensor, X>,
    apply_output: Apply<B::Tensor, Y>,
}

struct Inner<B: Backend> {
    backend: Arc<B>,
    tier: Tier,
    plan: FeedPlan,
    budget: Budget,
    streams: Option<(Arc<dyn Stream>, Arc<dyn Stream>)>,
    input: Side,
    output: Side,
    start: FeedState,
    options: FeederBuilder,
    counters: Arc<Counters>,
}

impl Feeder<HostBackend, HostTensor, HostTensor> {
    /// A feeder to be filled in.
    #[must_use]
    pub fn builder(config: &FeedConfig) -> FeederBuilder {
        FeederBuilder {
            config: config.clone(),
            budget: None,
            input: Given::default(),
            output: Given::default(),
            forward: None,
            shuffle: Shuffle::None,
            seed: 0,
            workers: 2,
            read_ahead: None,
            ordered: true,
            rank: 0,
            ranks: 1,
            cache: true,
            policy: ErrorPolicy::default(),
            observer: None,
            resume: None,
        }
    }
}

impl<B: Backend, X, Y> Feeder<B, X, Y> {
    /// Makes something else of each input batch: another shape, another device, another type. Runs where batches are asked for.
    #[must_use]
    pub fn apply_on_input_batch<Z>(
        self,
        apply: impl Fn(B::Tensor) -> Result<Z, Cause> + Send + Sync + 'static,
    ) -> Feeder<B, Z, Y> {
        Feeder { inner: self.inner, apply_input: Arc::new(apply), apply_output: self.apply_output }
    }

    /// The same for output batches.
    #[must_use]
    pub fn apply_on_output_batch<Z>(
        self,
        apply: impl Fn(B::Tensor) -> Result<Z, Cause> + Send + Sync + 'static,
    ) -> Feeder<B, X, Z> {
        Feeder { inner: self.inner, apply_input: self.apply_input, apply_output: Arc::new(apply) }
    }

    /// The plan: batch size, what fits, what each takes.
    #[must_use]
    pub const fn plan(&self) -> &FeedPlan {
        &self.inner.plan
    }

    /// The budget that the feed keeps to.
    #[must_use]
    pub const fn budget(&self) -> &Budget {
        &self.inner.budget
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> FeedStats {
        self.inner.counters.value()
    }

    /// The order of an epoch.
    #[must_use]
    pub fn order(&self, epoch: u64) -> Order {
        let (shuffle, seed) = (self.inner.options.shuffle, self.inner.options.seed);
        Order::new(self.inner.plan.identities, shuffle, seed, epoch)
    }

    /// The next `count` epochs, from the first or from where the feed resumes (the rest of that epoch counts as one). Memory for one batch
    /// is reserved here, and threads are started; what they read ahead belongs to these epochs alone.
    ///
    /// # Errors
    /// [`dd_core::Error::OutOfMemory`] where the budget has no room for one batch; [`Error::Threads`]; [`Error::Setting`] for ranks that
    /// cannot share the samples evenly.
    pub fn generate_epochs(&self, count: u64) -> Result<Epochs<B, X, Y>> {
        let inner = &self.inner;
        let options = &inner.options;
        let order = Order::new(inner.plan.identities, options.shuffle, options.seed, inner.start.epoch);
        let (mut input, mut output) = (inner.input.clone(), inner.output.clone());
        let source = match (&inner.streams, &options.forward) {
            (Some((inputs, outputs)), _) => Source::Anywhere(Arc::clone(inputs), Arc::clone(outputs)),
            (None, Some(source)) => {
                let reads = inner.plan.one_read_count;
                Source::Forward(Windows::new(Arc::clone(source), reads, &order, &inner.budget)?)
            }
            (None, None) => return Err(Error::setting("inputs", "missing", "give a stream")),
        };
        let variations = usize::try_from(inner.plan.one_read_count);
        let variations = variations.map_err(|_| crate::config::overflow("one read"))?;
        let end = inner.start.epoch.saturating_add(count);
        if options.cache && count > 1 && matches!(source, Source::Anywhere(..)) {
            input.cache = Some(Cache::new(&inner.budget, input.stored * variations));
            output.cache = Some(Cache::new(&inner.budget, output.stored * variations));
        }
        let shared = Shared {
            backend: Arc::clone(&inner.backend),
            tier: inner.tier,
            plan: inner.plan.clone(),
            source,
            input,
            output,
            variations,
            seed: options.seed,
            shuffle: options.shuffle,
            rank: options.rank,
            ranks: options.ranks,
            end,
            policy: options.policy,
            orders: Mutex::new(BTreeMap::from([(inner.start.epoch, Arc::new(order))])),
            counters: Arc::clone(&inner.counters),
            floor: AtomicU64::new(0),
        };
        let slots = options.read_ahead.unwrap_or(2 * options.workers + 2).max(1);
        let settings =
            Settings { workers: options.workers, slots, ordered: options.ordered, start: inner.start };
        let engine = Engine::new(shared, &inner.budget, &settings)?;
        let (input, output) = (Arc::clone(&self.apply_input), Arc::clone(&self.apply_output));
        Ok(Epochs::new(engine, inner.start.epoch..end, input, output, options.observer.clone()))
    }
}
