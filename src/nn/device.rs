//! The parameters of a network in the memory of a CUDA device, so that its forward and backward pass run there.

use super::params::{Layout, Param, ParamId, ParamStore, Role};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::tensor::Tensor;

/// Tags of the memory in the device's ledger.
const TAGS: [&str; 3] = ["weight", "master weight", "buffer"];

/// A copy of a [`ParamStore`] on a device. Its tensors keep their places: [`DeviceParams::refresh_from`] writes into them,
/// so a captured graph goes on using them.
pub struct DeviceParams {
    /// What a [`super::Ctx`] runs on: parameters of rank 2 and more, which are operands of products, as the device's type;
    /// other parameters (biases, gains, tables) and floating-point buffers as f32. Buffers that count are left in host
    /// memory: no kernel reads them.
    pub store: ParamStore,
    /// The f32 values of every parameter, which an optimiser updates: where `store` has f32 too, the same tensor.
    pub masters: Vec<(ParamId, Tensor)>,
}

impl DeviceParams {
    /// Copies every value to the device. `dtype` is the type of operands: bf16 or f32. On a planning device the values need
    /// not be filled, and nothing is copied.
    ///
    /// # Errors
    /// Another `dtype`, values that are not filled, or no memory.
    pub fn new(store: &ParamStore, gpu: &Gpu, dtype: DType) -> Result<Self> {
        if ![DType::F32, DType::Bf16].contains(&dtype) {
            return Err(Error::dtype("device parameters", format!("operands cannot be {dtype}"))
                .with_remedy("choose f32 or bf16"));
        }
        let mut there = store.clone();
        let mut masters = Vec::new();
        for (id, p) in store.iter() {
            let key = |e: Error| e.with_key(p.name());
            match Kind::of(p) {
                Kind::Counter => {}
                Kind::Buffer => there.set(id, p.value().to_gpu_tagged(gpu, TAGS[2]).map_err(key)?)?,
                kind => {
                    let master = p.value().to_gpu_tagged(gpu, TAGS[1]).map_err(key)?;
                    let narrow = kind == Kind::Operand && dtype != master.dtype();
                    let value = match narrow {
                        true => p.value().to_dtype(dtype)?.to_gpu_tagged(gpu, TAGS[0]).map_err(key)?,
                        false => master.clone(),
                    };
                    there.set(id, value)?;
                    masters.push((id, master));
                }
            }
        }
        Ok(DeviceParams { store: there, masters })
    }

    /// Copies the values of a store on the host into the tensors that are there.
    ///
    /// # Errors
    /// The store is of another network, its values are not filled, or a copy fails.
    pub fn refresh_from(&mut self, from: &ParamStore) -> Result<()> {
        self.expect_same_network(from)?;
        for (id, p) in from.iter() {
            let key = |e: Error| e.with_key(p.name());
            if Kind::of(p) == Kind::Counter {
                self.store.set(id, p.value().clone())?;
                continue;
            }
            let there = self.store.get(id).value();
            p.value().to_dtype(there.dtype()).and_then(|v| v.copy_to_gpu(there)).map_err(key)?;
        }
        for (id, master) in &self.masters {
            // Where it is the value itself, it has just been written.
            if self.store.get(*id).value().dtype() != master.dtype() {
                let p = from.get(*id);
                p.value().copy_to_gpu(master).map_err(|e| e.with_key(p.name()))?;
            }
        }
        Ok(())
    }

    /// Copies the f32 parameters and the buffers into a store on the host. Waits for the device.
    ///
    /// # Errors
    /// The store is of another network, or a copy fails.
    pub fn download(&self, into: &mut ParamStore) -> Result<()> {
        self.expect_same_network(into)?;
        for (id, p) in self.store.iter().filter(|(_, p)| p.role() == Role::Buffer) {
            into.set(id, p.value().to_cpu()?)?;
        }
        self.masters.iter().try_for_each(|(id, master)| into.set(*id, master.to_cpu()?))
    }

    fn expect_same_network(&self, other: &ParamStore) -> Result<()> {
        let same = |(a, b): ((ParamId, &Param), (ParamId, &Param))| {
            a.1.name() == b.1.name() && a.1.value().shape() == b.1.value().shape()
        };
        if self.store.len() == other.len() && self.store.iter().zip(other.iter()).all(same) {
            return Ok(());
        }
        Err(Error::usage("the parameters on the device are of another network")
            .with_op("device parameters")
            .with_remedy("pass the store that they were made from"))
    }
}

/// Where a value goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An operand of a product.
    Operand,
    /// A bias, a gain, a table.
    Exact,
    /// Running statistics.
    Buffer,
    /// An integer.
    Counter,
}

impl Kind {
    fn of(p: &Param) -> Kind {
        match p.role() {
            Role::Buffer if p.value().dtype() == DType::F32 => Kind::Buffer,
            Role::Buffer => Kind::Counter,
            Role::Parameter if p.layout() == Layout::Table => Kind::Exact,
            Role::Parameter if p.value().shape().len() >= 2 => Kind::Operand,
            Role::Parameter => Kind::Exact,
        }
    }
}
