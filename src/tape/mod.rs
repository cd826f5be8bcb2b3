//! The autograd tape. It records operations, runs them backward, and frees what it saved as it goes. It knows ops
//! only through the trait [`Op`].

use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::ops::add::Add;
use crate::ops::{self, Backward, Offload, Offloaded, Op};
use crate::tensor::{Device, Tensor};

/// A tensor that may be part of a recorded computation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Var {
    tensor: Tensor,
    node: Option<usize>,
}

impl Var {
    /// The value.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The value, without its place on the tape.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }

    /// The shape of the value.
    pub fn shape(&self) -> Shape {
        self.tensor.shape()
    }

    /// Whether a gradient flows to this value.
    pub fn tracked(&self) -> bool {
        self.node.is_some()
    }

    /// The same value, cut off from the tape.
    pub fn detach(&self) -> Var {
        Var { tensor: self.tensor.clone(), node: None }
    }
}

struct Node<'a> {
    op: Option<Box<dyn Op + 'a>>,
    parents: Vec<Option<usize>>,
    saved: Vec<Tensor>,
    inputs: Vec<Shape>,
    /// The dtype that the result had on the device, if the op was offloaded; `saved` then lies there.
    offloaded: Option<DType>,
}

/// One executed operation, for plans and profiles.
#[derive(Clone, Debug)]
pub struct Step {
    /// Name of the op.
    pub op: &'static str,
    /// Shape of the result.
    pub shape: Shape,
    /// Floating-point operations of the forward pass.
    pub flops: u64,
    /// The sizes, if it was a convolution or a linear layer.
    pub convolution: Option<ops::conv2d::Geometry>,
    /// Whether it was recorded for the backward pass.
    pub recorded: bool,
}

/// Records operations on [`Var`]s.
///
/// A frozen tape ([`Tape::frozen`]) runs operations and records nothing, so every intermediate value is freed as
/// soon as its last [`Var`] goes out of scope. On a recording tape, operations none of whose inputs is tracked are
/// not recorded either.
#[derive(Default)]
pub struct Tape<'a> {
    nodes: Vec<Node<'a>>,
    recording: bool,
    steps: Option<Vec<Step>>,
    offload: Option<Offload>,
}

impl<'a> Tape<'a> {
    /// A tape that records.
    pub fn new() -> Self {
        Tape { recording: true, ..Self::default() }
    }

    /// A tape that records nothing: for networks that are not trained.
    pub fn frozen() -> Self {
        Tape::default()
    }

    /// Whether operations on tracked values are recorded.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Keeps a list of the executed operations, to be read with [`Tape::steps`].
    pub fn trace(mut self) -> Self {
        self.steps = Some(Vec::new());
        self
    }

    /// Runs the ops that have a kernel on a device, forward and backward, and all others on the host. Values and
    /// gradients stay f32 in host memory; what an offloaded op saves for its backward pass stays on the device. For
    /// comparing kernels with the host inside whole networks, not for speed.
    pub fn offload(mut self, offload: Offload) -> Self {
        self.offload = Some(offload);
        self
    }

    /// Where ops are offloaded to.
    pub fn offloading(&self) -> Option<&Offload> {
        self.offload.as_ref()
    }

    /// The operations executed since [`Tape::trace`].
    pub fn steps(&self) -> &[Step] {
        self.steps.as_deref().unwrap_or_default()
    }

    /// A value that gradients flow to (a parameter, an input under test). On a frozen tape it is a constant.
    pub fn leaf(&mut self, tensor: Tensor) -> Var {
        if !self.recording {
            return self.constant(tensor);
        }
        self.nodes.push(Node { op: None, parents: vec![], saved: vec![], inputs: vec![], offloaded: None });
        Var { tensor, node: Some(self.nodes.len() - 1) }
    }

    /// A value without a gradient.
    pub fn constant(&self, tensor: Tensor) -> Var {
        Var { tensor, node: None }
    }

    /// Runs an op and records it if any input is tracked.
    ///
    /// # Errors
    /// As [`ops::run`].
    pub fn apply(&mut self, op: impl Op + 'a, inputs: &[&Var]) -> Result<Var> {
        Ok(self.apply_aux(op, inputs)?.0)
    }

    /// Like [`Tape::apply`], and also gives the op's results without a gradient.
    ///
    /// # Errors
    /// As [`ops::run`].
    pub fn apply_aux(&mut self, op: impl Op + 'a, inputs: &[&Var]) -> Result<(Var, Vec<Tensor>)> {
        let tensors: Vec<&Tensor> = inputs.iter().map(|v| &v.tensor).collect();
        let offloaded = match &self.offload {
            Some(o) if o.takes(&op, &tensors) => Some(o.run(&op, &tensors)?),
            _ => None,
        };
        let (out, kept) = match offloaded {
            Some(Offloaded { host, saved, dtype }) => (host, Some((saved, dtype))),
            None => (ops::run(&op, &tensors)?, None),
        };
        let recorded = self.recording && inputs.iter().any(|v| v.tracked());
        if let Some(steps) = &mut self.steps {
            let shapes: Vec<Shape> = tensors.iter().map(|t| t.shape()).collect();
            let (flops, convolution) = (op.flops(&shapes), op.convolution(&shapes));
            steps.push(Step { op: op.name(), shape: out.y.shape(), flops, convolution, recorded });
        }
        if !recorded {
            return Ok((Var { tensor: out.y, node: None }, out.aux));
        }
        let y = match kept {
            Some((saved, dtype)) => self.push(op, inputs, out.y, saved, Some(dtype)),
            None => self.record(op, inputs, out.y, out.extra),
        };
        Ok((y, out.aux))
    }

    /// Records an op whose result is already known. `extra` is appended to what [`Op::save`] keeps.
    pub fn record(&mut self, op: impl Op + 'a, inputs: &[&Var], y: Tensor, extra: Vec<Tensor>) -> Var {
        let tensors: Vec<&Tensor> = inputs.iter().map(|v| &v.tensor).collect();
        let mut saved = op.save(&tensors, &y);
        saved.extend(extra);
        self.push(op, inputs, y, saved, None)
    }

    fn push(
        &mut self,
        op: impl Op + 'a,
        inputs: &[&Var],
        y: Tensor,
        saved: Vec<Tensor>,
        offloaded: Option<DType>,
    ) -> Var {
        self.nodes.push(Node {
            parents: inputs.iter().map(|v| v.node).collect(),
            inputs: inputs.iter().map(|v| v.shape()).collect(),
            saved,
            op: Some(Box::new(op)),
            offloaded,
        });
        Var { tensor: y, node: Some(self.nodes.len() - 1) }
    }

    /// Adds the steps of another traced tape, e.g. of a part that was run apart.
    pub fn extend_steps(&mut self, other: &Tape<'_>) {
        if let Some(steps) = &mut self.steps {
            steps.extend_from_slice(other.steps());
        }
    }

    /// Whether executed operations are listed.
    pub fn is_tracing(&self) -> bool {
        self.steps.is_some()
    }

    /// Runs backward from one scalar with gradient 1.
    ///
    /// # Errors
    /// `loss` is not a scalar or not tracked, or an op's backward fails.
    pub fn backward(self, loss: &Var) -> Result<Grads> {
        if loss.tensor.elems() != 1 {
            return Err(Error::shape("backward", format!("starts from one number, got {}", loss.shape())));
        }
        let seed = match loss.tensor.device() {
            Device::Cpu => Tensor::full(loss.shape(), 1.0),
            Device::Meta => Tensor::meta(loss.shape(), loss.tensor.dtype(), loss.tensor.storage().ledger()),
            // Made there, so that it can be captured. Losses are f32 on a device.
            Device::Cuda(_) if loss.tensor.dtype() == DType::F32 => {
                let gpu = loss.tensor.gpu().expect("a tensor on a device knows it");
                Tensor::full_gpu(loss.shape(), 1.0, gpu, "gradient")?
            }
            Device::Cuda(_) => {
                let one = Tensor::full(loss.shape(), 1.0).to_dtype(loss.tensor.dtype())?;
                one.to_device_of(&loss.tensor)?
            }
        };
        self.backward_from(vec![(loss.clone(), seed)])
    }

    /// Runs backward from any values with the given gradients. Saved tensors are dropped as soon as they were used;
    /// only the gradients of leaves remain.
    ///
    /// # Errors
    /// No value is tracked, a seed has another shape than its value, or an op's backward fails.
    pub fn backward_from(mut self, seeds: Vec<(Var, Tensor)>) -> Result<Grads> {
        let mut grads: Vec<Option<Tensor>> = vec![None; self.nodes.len()];
        let mut any = false;
        for (var, seed) in seeds {
            if var.shape() != seed.shape() {
                return Err(Error::shape("backward", "a seed must have the shape of its value")
                    .with_tensor("value", &var.tensor)
                    .with_tensor("seed", &seed));
            }
            if let Some(n) = var.node {
                accumulate(&mut grads[n], seed)?;
                any = true;
            }
        }
        if !any {
            return Err(Error::usage("backward: nothing to differentiate: no value is tracked")
                .with_remedy("make the inputs leaves of a recording tape"));
        }
        for n in (0..self.nodes.len()).rev() {
            // Popping drops the node, and with it what it saved, right after its backward has run.
            let node = self.nodes.pop().expect("one node per index");
            let Some(op) = node.op else { continue };
            let Some(gy) = grads[n].take() else { continue };
            let needs: Vec<bool> = node.parents.iter().map(Option::is_some).collect();
            let ctx = Backward { gy: &gy, saved: &node.saved, inputs: &node.inputs, needs: &needs };
            let results = match (&self.offload, node.offloaded) {
                (Some(offload), Some(dtype)) => offload.backward(&*op, &ctx, dtype)?,
                _ => ops::backward(&*op, &ctx)?,
            };
            debug_assert_eq!(results.len(), node.parents.len(), "{} must answer for every input", op.name());
            drop(node.saved);
            drop(gy);
            for ((parent, g), shape) in node.parents.iter().zip(results).zip(&node.inputs) {
                if let (Some(p), Some(g)) = (parent, g) {
                    debug_assert_eq!(g.shape(), *shape, "gradient of {} has a wrong shape", op.name());
                    accumulate(&mut grads[*p], g)?;
                }
            }
        }
        Ok(Grads(grads))
    }
}

fn accumulate(slot: &mut Option<Tensor>, g: Tensor) -> Result<()> {
    match slot {
        None => *slot = Some(g),
        Some(sum) if sum.device() == Device::Meta => {}
        // On the device the order of additions is that of the tape too: the op's own kernel, one sum at a time.
        Some(sum) if sum.gpu().is_some() => *sum = ops::run(&Add { relu: false }, &[sum, &g])?.y,
        Some(sum) => {
            let g = g.f32s()?;
            sum.data_mut::<f32>()?.iter_mut().zip(g).for_each(|(s, g)| *s += g);
        }
    }
    Ok(())
}

/// Gradients of the leaves after a backward pass.
pub struct Grads(Vec<Option<Tensor>>);

impl Grads {
    /// Takes the gradient of a leaf; `None` if no gradient reached it.
    pub fn take(&mut self, leaf: &Var) -> Option<Tensor> {
        self.0.get_mut(leaf.node?)?.take()
    }
}
