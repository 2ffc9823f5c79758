//! [`Device`] on Vulkan 1.2, which AMD's, Intel's and NVIDIA's drivers have. The loader is looked for at run time.
//!
//! Kernels reach memory by address, so there are no descriptors. There is one command buffer for what is computed and one for
//! each lane that copies.
//!
//! Must not know: what kernels compute.

use std::{
    ffi::{CStr, c_char},
    time::{Duration, Instant},
};

use ash::{Entry, Instance, vk};

use super::{Arithmetic, Buffer, Choice, Device, Kernel, LANES, PUSH_WORDS, Place, Step, fault};
use crate::{Error, Result};

/// How long is waited for the device: a kernel takes some microseconds, a copy some milliseconds.
const PATIENCE_NS: u64 = 20_000_000_000;

/// How long is looked before the system is asked to wait: waking up takes longer than a kernel.
const SPIN: Duration = Duration::from_millis(1);

/// A buffer, its memory, and where the host sees it.
struct Held {
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    bytes: u64,
    map: Option<Map>,
}

/// Memory that the host sees.
struct Map(*mut u8);

// SAFETY: the memory stays mapped until the device is dropped, and is reached through the one owner of the device.
unsafe impl Send for Map {}

/// Commands that run again and again, and what says that they are through.
struct Commands {
    queue: vk::Queue,
    pool: vk::CommandPool,
    buffer: vk::CommandBuffer,
    fence: vk::Fence,
    runs: bool,
}

/// See the module.
pub struct Vulkan {
    name: String,
    instance: Instance,
    physical: vk::PhysicalDevice,
    device: ash::Device,
    /// Families whose queues use buffers.
    families: Vec<u32>,
    tells_budget: bool,
    /// Whether it multiplies four bytes at once.
    packed_dots: bool,
    layout: vk::PipelineLayout,
    pipelines: Vec<vk::Pipeline>,
    compute: Commands,
    lanes: Vec<Commands>,
    buffers: Vec<Option<Held>>,
    shares_memory: bool,
    /// Keeps the loader loaded.
    _entry: Entry,
}

/// A physical device and what is known of it.
struct Found {
    number: usize,
    physical: vk::PhysicalDevice,
    name: String,
    shares_memory: bool,
    own_bytes: u64,
}

impl Vulkan {
    /// See [`super::open`].
    pub fn open(choice: Choice) -> Result<Self> {
        // SAFETY: loading a library runs its initialisers; this is the system's Vulkan loader.
        let entry = unsafe { Entry::load() }
            .map_err(|_| Error::invalid("there is no Vulkan loader on this machine (libvulkan.so.1)"))?;
        let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_2);
        // SAFETY: the structures live until the call returns.
        let instance =
            unsafe { entry.create_instance(&vk::InstanceCreateInfo::default().application_info(&app), None) }
                .map_err(|e| Error::invalid(format!("no Vulkan driver answers: {e}")))?;
        let opened = pick(&instance, choice).and_then(|found| connect(&instance, &found).map(|parts| (found, parts)));
        match opened {
            Err(e) => {
                // SAFETY: nothing that was made of the instance is left.
                unsafe { instance.destroy_instance(None) };
                Err(e)
            }
            Ok((found, Connected { device, families, tells_budget, packed_dots })) => {
                let name = format!("{} (Vulkan)", found.name);
                let none = || Commands {
                    queue: vk::Queue::null(),
                    pool: vk::CommandPool::null(),
                    buffer: vk::CommandBuffer::null(),
                    fence: vk::Fence::null(),
                    runs: false,
                };
                let mut vulkan = Self {
                    name,
                    instance,
                    physical: found.physical,
                    device,
                    families,
                    tells_budget,
                    packed_dots,
                    layout: vk::PipelineLayout::null(),
                    pipelines: Vec::new(),
                    compute: none(),
                    lanes: Vec::new(),
                    buffers: Vec::new(),
                    shares_memory: found.shares_memory,
                    _entry: entry,
                };
                vulkan.prepare().map_err(|e| fault(&vulkan.name, format_args!("cannot be set up: {e}")))?;
                Ok(vulkan)
            }
        }
    }

    fn prepare(&mut self) -> Result<(), vk::Result> {
        let push =
            vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size((4 * PUSH_WORDS) as u32);
        let layout = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(std::slice::from_ref(&push));
        // SAFETY: the device is open, and the structures live until the call returns.
        self.layout = unsafe { self.device.create_pipeline_layout(&layout, None)? };
        let (first, last) = (self.families[0], *self.families.last().expect("a family that computes"));
        self.compute = self.commands(first)?;
        for _ in 0..LANES {
            let lane = self.commands(last)?;
            self.lanes.push(lane);
        }
        Ok(())
    }

    fn commands(&self, family: u32) -> Result<Commands, vk::Result> {
        let pool = vk::CommandPoolCreateInfo::default()
            .queue_family_index(family)
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
        // SAFETY: the family has a queue (see `connect`); the structures live until the calls return.
        unsafe {
            let pool = self.device.create_command_pool(&pool, None)?;
            let one = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
            let buffer = self.device.allocate_command_buffers(&one)?[0];
            let fence = self.device.create_fence(&vk::FenceCreateInfo::default(), None)?;
            let queue = self.device.get_device_queue(family, 0);
            Ok(Commands { queue, pool, buffer, fence, runs: false })
        }
    }

    /// The kind of memory for a place that suits a buffer's needs, best first.
    fn memory_types(&self, place: Place, allowed: u32) -> Vec<u32> {
        use vk::MemoryPropertyFlags as Flags;
        let host = Flags::HOST_VISIBLE | Flags::HOST_COHERENT;
        let wishes = match place {
            Place::Device => [Flags::DEVICE_LOCAL; 2],
            Place::Input => [Flags::DEVICE_LOCAL | host, host],
            Place::Staging => [host; 2],
            Place::Output => [Flags::HOST_CACHED | host, host],
        };
        // SAFETY: the instance is alive.
        let memory = unsafe { self.instance.get_physical_device_memory_properties(self.physical) };
        let types = &memory.memory_types[..memory.memory_type_count as usize];
        let suits = |wish: Flags| {
            let fits =
                move |(i, ty): &(usize, &vk::MemoryType)| allowed >> i & 1 == 1 && ty.property_flags.contains(wish);
            types.iter().enumerate().filter(fits).map(|(i, _)| i as u32)
        };
        wishes.iter().flat_map(|&wish| suits(wish)).collect()
    }

    fn try_allocate(&self, bytes: u64, place: Place) -> Result<(Held, u64), vk::Result> {
        use vk::BufferUsageFlags as Usage;
        let usage = Usage::STORAGE_BUFFER | Usage::SHADER_DEVICE_ADDRESS | Usage::TRANSFER_SRC | Usage::TRANSFER_DST;
        let mut info = vk::BufferCreateInfo::default().size(bytes).usage(usage);
        if self.families.len() > 1 {
            info = info.sharing_mode(vk::SharingMode::CONCURRENT).queue_family_indices(&self.families);
        }
        // SAFETY: the device is open, and the structures live until the calls return. What was made is destroyed where a later
        // step fails.
        unsafe {
            let buffer = self.device.create_buffer(&info, None)?;
            let needs = self.device.get_buffer_memory_requirements(buffer);
            let allocate = |ty: u32| {
                let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
                let info = vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(ty);
                self.device.allocate_memory(&info.push_next(&mut flags), None)
            };
            let types = self.memory_types(place, needs.memory_type_bits);
            let mut memory = Err(vk::Result::ERROR_FEATURE_NOT_PRESENT);
            for ty in types {
                memory = allocate(ty);
                if memory.is_ok() {
                    break;
                }
            }
            let memory = memory.inspect_err(|_| self.device.destroy_buffer(buffer, None))?;
            let map = self.device.bind_buffer_memory(buffer, memory, 0).and_then(|()| match place {
                Place::Device => Ok(None),
                _ => {
                    let map = self.device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty())?;
                    Ok(Some(Map(map.cast())))
                }
            });
            let map = map.inspect_err(|_| {
                self.device.destroy_buffer(buffer, None);
                self.device.free_memory(memory, None);
            })?;
            let address = self.device.get_buffer_device_address(&vk::BufferDeviceAddressInfo::default().buffer(buffer));
            Ok((Held { buffer, memory, bytes, map }, address))
        }
    }

    fn held(&self, buffer: Buffer) -> &Held {
        self.buffers[buffer.index].as_ref().expect("a buffer that was not given back")
    }

    /// Where the host sees some bytes of a buffer.
    fn mapped(&self, buffer: Buffer, at: u64, len: usize) -> *mut u8 {
        let held = self.held(buffer);
        assert!(at.checked_add(len as u64).is_some_and(|end| end <= held.bytes), "bytes inside the buffer");
        let Map(start) = held.map.as_ref().expect("a buffer that the host sees");
        start.wrapping_add(at as usize)
    }

    fn begin(&self, commands: &Commands) -> Result<(), vk::Result> {
        let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        // SAFETY: what the buffer held before has run (the caller waited); its pool lets single buffers start anew.
        unsafe { self.device.begin_command_buffer(commands.buffer, &once) }
    }

    /// Makes what `from` wrote visible to `to`.
    fn barrier(&self, commands: &Commands, from: vk::PipelineStageFlags, to: vk::PipelineStageFlags) {
        let memory = vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::MEMORY_WRITE)
            .dst_access_mask(vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE);
        let (flags, memory) = (vk::DependencyFlags::empty(), std::slice::from_ref(&memory));
        // SAFETY: the command buffer is being recorded.
        unsafe { self.device.cmd_pipeline_barrier(commands.buffer, from, to, flags, memory, &[], &[]) }
    }

    fn finish(&self, commands: &Commands) -> Result<(), vk::Result> {
        let buffers = [commands.buffer];
        let submit = vk::SubmitInfo::default().command_buffers(&buffers);
        // SAFETY: the buffer was recorded, its fence is not signalled and no other submission uses it.
        unsafe {
            self.device.end_command_buffer(commands.buffer)?;
            self.device.queue_submit(commands.queue, &[submit], commands.fence)
        }
    }

    fn record(&self, steps: &[Step]) -> Result<(), vk::Result> {
        use vk::PipelineStageFlags as Stage;
        let commands = &self.compute;
        self.begin(commands)?;
        self.barrier(commands, Stage::ALL_COMMANDS, Stage::COMPUTE_SHADER);
        for step in steps {
            match step {
                Step::Barrier => self.barrier(commands, Stage::COMPUTE_SHADER, Stage::COMPUTE_SHADER),
                Step::Run { kernel, groups: [x, y, z], push } => {
                    let mut bytes = [0; 4 * PUSH_WORDS];
                    for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(push) {
                        *bytes = word.to_ne_bytes();
                    }
                    let (buffer, compute) = (commands.buffer, vk::PipelineBindPoint::COMPUTE);
                    let stage = vk::ShaderStageFlags::COMPUTE;
                    // SAFETY: the pipeline is this device's, and the range of the layout is as long as `bytes`.
                    unsafe {
                        self.device.cmd_bind_pipeline(buffer, compute, self.pipelines[kernel.0]);
                        self.device.cmd_push_constants(buffer, self.layout, stage, 0, &bytes);
                        self.device.cmd_dispatch(buffer, *x, *y, *z);
                    }
                }
            }
        }
        self.barrier(commands, Stage::COMPUTE_SHADER, Stage::HOST);
        self.finish(commands)
    }

    fn await_fence(&self, commands: &Commands) -> Result<(), vk::Result> {
        let began = Instant::now();
        // SAFETY: the fence was given to a submission.
        unsafe {
            while !self.device.get_fence_status(commands.fence)? && began.elapsed() < SPIN {
                std::hint::spin_loop();
            }
            self.device.wait_for_fences(&[commands.fence], true, PATIENCE_NS)?;
            self.device.reset_fences(&[commands.fence])
        }
    }

    /// (taken by this process, what it may take in all) of the heaps of the device's own memory.
    fn budget(&self) -> Option<(u64, u64)> {
        if !self.tells_budget {
            return None;
        }
        let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut properties = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
        // SAFETY: the instance is alive, and the device has the extension that the structure is of.
        unsafe { self.instance.get_physical_device_memory_properties2(self.physical, &mut properties) };
        let memory = properties.memory_properties;
        let own = own_heaps(&memory);
        Some(own.fold((0, 0), |(used, all), i| (used + budget.heap_usage[i], all + budget.heap_budget[i])))
    }

    /// The code with what Vulkan leaves to devices pinned down, as far as this one can: sums and products are rounded to
    /// nearest, subnormal numbers stay, and so do NaN and the signs of zeros.
    fn strict(&self, code: &[u32]) -> Vec<u32> {
        let mut modes = vk::PhysicalDeviceFloatControlsProperties::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut modes);
        // SAFETY: the instance is alive; the structure is part of Vulkan 1.2, which the device has.
        unsafe { self.instance.get_physical_device_properties2(self.physical, &mut properties) };
        let has = [
            (DENORM_PRESERVE, modes.shader_denorm_preserve_float32),
            (SIGNED_ZERO_INF_NAN_PRESERVE, modes.shader_signed_zero_inf_nan_preserve_float32),
            (ROUNDING_MODE_RTE, modes.shader_rounding_mode_rte_float32),
        ];
        with_modes(code, &has.map(|(mode, has)| (mode, has == vk::TRUE)))
    }

    fn build(&self, code: &[u32], constants: [bool; 2]) -> Result<vk::Pipeline, vk::Result> {
        let entry = |i: u32| vk::SpecializationMapEntry::default().constant_id(i).offset(4 * i).size(4);
        let (entries, words) = ([entry(0), entry(1)], constants.map(|on| u32::from(on).to_ne_bytes()));
        let constants = vk::SpecializationInfo::default().map_entries(&entries).data(words.as_flattened());
        // SAFETY: the code is one of the shaders that this program carries; the structures live until the calls return.
        unsafe {
            let module = self.device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(code), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main")
                .specialization_info(&constants);
            let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(self.layout);
            let made = self.device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None);
            self.device.destroy_shader_module(module, None);
            made.map(|pipelines| pipelines[0]).map_err(|(_, e)| e)
        }
    }
}

/// (capability, execution mode) of SPIR-V, for floats of 32 bits.
const DENORM_PRESERVE: (u32, u32) = (4464, 4459);
const SIGNED_ZERO_INF_NAN_PRESERVE: (u32, u32) = (4466, 4461);
const ROUNDING_MODE_RTE: (u32, u32) = (4467, 4462);

/// SPIR-V with those modes of its one entry point that are true.
fn with_modes(code: &[u32], modes: &[((u32, u32), bool)]) -> Vec<u32> {
    const HEADER: usize = 5;
    const OP_ENTRY_POINT: u32 = 15;
    const OP_EXECUTION_MODE: u32 = 16;
    const OP_CAPABILITY: u32 = 17;
    let modes = || modes.iter().filter(|(_, wanted)| *wanted).map(|(mode, _)| *mode);
    let mut out = code[..HEADER].to_vec();
    out.extend(modes().flat_map(|(capability, _)| [2 << 16 | OP_CAPABILITY, capability]));
    let mut at = HEADER;
    let mut entry = 0;
    while at < code.len() {
        let (op, words) = (code[at] & 0xffff, (code[at] >> 16) as usize);
        out.extend(&code[at..at + words]);
        if op == OP_ENTRY_POINT {
            entry = code[at + 2];
        } else if op == OP_EXECUTION_MODE && entry == code[at + 1] {
            out.extend(modes().flat_map(|(_, mode)| [4 << 16 | OP_EXECUTION_MODE, entry, mode, 32]));
            // The first one will do: a kernel has the mode that says its workgroup's size.
            entry = 0;
        }
        at += words;
    }
    out
}

/// SPIR-V whose products of four bytes at once, which are behind a constant that is false, are of something that every device
/// has.
fn without_packed_dots(code: &[u32]) -> Vec<u32> {
    const HEADER: usize = 5;
    const OP_NOP: u32 = 0;
    const OP_EXTENSION: u32 = 10;
    const OP_CAPABILITY: u32 = 17;
    const OP_I_MUL: u32 = 132;
    const OP_S_DOT: u32 = 4450;
    const DOT_PRODUCTS: std::ops::RangeInclusive<u32> = 6016..=6019;
    let name: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    let is_dots = |at: usize| name[4 * at + 4..].starts_with(b"SPV_KHR_integer_dot_product\0");
    let mut out = code[..HEADER].to_vec();
    let mut at = HEADER;
    while at < code.len() {
        let (op, words) = (code[at] & 0xffff, (code[at] >> 16) as usize);
        match op {
            OP_CAPABILITY if DOT_PRODUCTS.contains(&code[at + 1]) => {}
            OP_EXTENSION if is_dots(at) => {}
            OP_S_DOT => {
                out.push(5 << 16 | OP_I_MUL);
                out.extend(&code[at + 1..at + 5]);
                out.extend((5..words).map(|_| 1 << 16 | OP_NOP));
            }
            _ => out.extend(&code[at..at + words]),
        }
        at += words;
    }
    out
}

/// The heaps of a device's own memory.
fn own_heaps(memory: &vk::PhysicalDeviceMemoryProperties) -> impl Iterator<Item = usize> {
    let heaps = memory.memory_heaps;
    let is_own = move |i: &usize| heaps[*i].flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL);
    (0..memory.memory_heap_count as usize).filter(is_own)
}

/// A string that a driver gave.
fn text(raw: &[c_char]) -> String {
    let bytes: Vec<u8> = raw.iter().map(|c| c.to_ne_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
}

/// The device that was asked for.
fn pick(instance: &Instance, choice: Choice) -> Result<Found> {
    // SAFETY: the instance is alive.
    let all = unsafe { instance.enumerate_physical_devices() }
        .map_err(|e| Error::invalid(format!("Vulkan lists no devices: {e}")))?;
    let look = |(number, &physical): (usize, &vk::PhysicalDevice)| {
        // SAFETY: the instance is alive, and the device is one of its own.
        let (properties, memory) = unsafe {
            (
                instance.get_physical_device_properties(physical),
                instance.get_physical_device_memory_properties(physical),
            )
        };
        let shares_memory = properties.device_type != vk::PhysicalDeviceType::DISCRETE_GPU
            && properties.device_type != vk::PhysicalDeviceType::VIRTUAL_GPU;
        let own_bytes = own_heaps(&memory).map(|i| memory.memory_heaps[i].size).sum();
        Found { number, physical, name: text(&properties.device_name), shares_memory, own_bytes }
    };
    let mut found: Vec<_> = all.iter().enumerate().map(look).collect();
    if found.is_empty() {
        return Err(Error::invalid("Vulkan finds no device on this machine"));
    }
    if let Choice::Number(n) = choice {
        let count = found.len();
        let at = found.iter().position(|f| f.number == n);
        return at.map(|at| found.swap_remove(at)).ok_or_else(|| {
            Error::invalid(format!("Vulkan lists {count} devices, counted from 0, and none is number {n}"))
        });
    }
    let best = found.into_iter().max_by_key(|f| (!f.shares_memory, f.own_bytes)).expect("some device");
    if best.shares_memory && choice == Choice::Best {
        let name = &best.name;
        return Err(Error::invalid(format!(
            "{name} uses the machine's own memory, so that experts in it gain nothing"
        )));
    }
    Ok(best)
}

/// An open device.
struct Connected {
    device: ash::Device,
    /// One that computes and one, if there is one, that copies beside it.
    families: Vec<u32>,
    /// Whether it tells how much memory is in use.
    tells_budget: bool,
    packed_dots: bool,
}

/// Whether the device multiplies four bytes at once, and not slower than one after another.
fn has_packed_dots(instance: &Instance, physical: vk::PhysicalDevice) -> bool {
    let mut has = vk::PhysicalDeviceShaderIntegerDotProductFeatures::default();
    let mut features = vk::PhysicalDeviceFeatures2::default().push_next(&mut has);
    let mut fast = vk::PhysicalDeviceShaderIntegerDotProductProperties::default();
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut fast);
    // SAFETY: the instance is alive, and the device is one of its own that has the extension of both structures.
    unsafe {
        instance.get_physical_device_features2(physical, &mut features);
        instance.get_physical_device_properties2(physical, &mut properties);
    }
    let is_fast = fast.integer_dot_product4x8_bit_packed_signed_accelerated == vk::TRUE;
    has.shader_integer_dot_product == vk::TRUE && is_fast
}

/// Opens the device.
fn connect(instance: &Instance, found: &Found) -> Result<Connected> {
    let lacks = |what: &str| fault(&found.name, format_args!("its Vulkan driver lacks {what}"));
    // SAFETY: the instance is alive, and the device is one of its own; structures live until the calls return.
    unsafe {
        let properties = instance.get_physical_device_properties(found.physical);
        if properties.api_version < vk::API_VERSION_1_2 {
            return Err(lacks("version 1.2"));
        }
        let mut has12 = vk::PhysicalDeviceVulkan12Features::default();
        let mut has = vk::PhysicalDeviceFeatures2::default().push_next(&mut has12);
        instance.get_physical_device_features2(found.physical, &mut has);
        if has.features.shader_int64 == vk::FALSE {
            return Err(lacks("64-bit integers (shaderInt64)"));
        }
        if has12.buffer_device_address == vk::FALSE {
            return Err(lacks("addresses of buffers (bufferDeviceAddress)"));
        }
        let families = instance.get_physical_device_queue_family_properties(found.physical);
        let is = |flags: vk::QueueFlags, wants: vk::QueueFlags, not: vk::QueueFlags| {
            flags.contains(wants) && !flags.intersects(not)
        };
        let family = |wants, not| families.iter().position(|f| is(f.queue_flags, wants, not));
        use vk::QueueFlags as Queue;
        let compute = family(Queue::COMPUTE, Queue::GRAPHICS).or_else(|| family(Queue::COMPUTE, Queue::empty()));
        let compute = compute.ok_or_else(|| lacks("a queue that computes"))?;
        let copies = family(Queue::TRANSFER, Queue::COMPUTE | Queue::GRAPHICS);
        let used: Vec<u32> = std::iter::once(compute).chain(copies).map(|f| f as u32).collect();
        let one = [1.0];
        let queue = |&f: &u32| vk::DeviceQueueCreateInfo::default().queue_family_index(f).queue_priorities(&one);
        let queues: Vec<_> = used.iter().map(queue).collect();
        let extensions = instance.enumerate_device_extension_properties(found.physical).unwrap_or_default();
        let has = |name: &CStr| extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
        let tells_budget = has(ash::ext::memory_budget::NAME);
        let dots = ash::khr::shader_integer_dot_product::NAME;
        let packed_dots = has(dots) && has_packed_dots(instance, found.physical);
        let used_names = [(tells_budget, ash::ext::memory_budget::NAME), (packed_dots, dots)];
        let names: Vec<_> = used_names.iter().filter(|(used, _)| *used).map(|(_, name)| name.as_ptr()).collect();
        let mut wants_dots =
            vk::PhysicalDeviceShaderIntegerDotProductFeatures::default().shader_integer_dot_product(true);
        let mut wants12 = vk::PhysicalDeviceVulkan12Features::default().buffer_device_address(true);
        let wants = vk::PhysicalDeviceFeatures::default().shader_int64(true);
        let mut info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&names)
            .enabled_features(&wants)
            .push_next(&mut wants12);
        if packed_dots {
            info = info.push_next(&mut wants_dots);
        }
        let device = instance
            .create_device(found.physical, &info, None)
            .map_err(|e| fault(&found.name, format_args!("cannot be opened: {e}")))?;
        Ok(Connected { device, families: used, tells_budget, packed_dots })
    }
}

impl Device for Vulkan {
    fn name(&self) -> &str {
        &self.name
    }

    fn shares_memory(&self) -> bool {
        self.shares_memory
    }

    fn free_bytes(&self) -> u64 {
        if let Some((used, all)) = self.budget() {
            return all.saturating_sub(used);
        }
        // SAFETY: the instance is alive.
        let memory = unsafe { self.instance.get_physical_device_memory_properties(self.physical) };
        own_heaps(&memory).map(|i| memory.memory_heaps[i].size).sum()
    }

    fn used_bytes(&self) -> Option<u64> {
        self.budget().map(|(used, _)| used)
    }

    fn kernel(&mut self, code: &[u8], arithmetic: Arithmetic) -> Result<Kernel> {
        let words: Vec<u32> = code.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let words = if arithmetic == Arithmetic::Strict { self.strict(&words) } else { words };
        let words = if self.packed_dots { words } else { without_packed_dots(&words) };
        let constants = [arithmetic == Arithmetic::Whole, self.packed_dots];
        let built = self.build(&words, constants);
        let pipeline = built.map_err(|e| fault(&self.name, format_args!("cannot build a kernel: {e}")))?;
        self.pipelines.push(pipeline);
        Ok(Kernel(self.pipelines.len() - 1))
    }

    fn allocate(&mut self, bytes: u64, place: Place) -> Result<Buffer> {
        let (held, address) = self
            .try_allocate(bytes, place)
            .map_err(|e| fault(&self.name, format_args!("cannot allocate {}: {e}", crate::human_bytes(bytes))))?;
        let index = self.buffers.iter().position(Option::is_none).unwrap_or_else(|| {
            self.buffers.push(None);
            self.buffers.len() - 1
        });
        self.buffers[index] = Some(held);
        Ok(Buffer { index, address, bytes })
    }

    fn free(&mut self, buffer: Buffer) {
        let held = self.buffers[buffer.index].take().expect("a buffer that was not given back");
        // SAFETY: the caller says that nothing uses it any more; freeing memory unmaps it.
        unsafe {
            self.device.destroy_buffer(held.buffer, None);
            self.device.free_memory(held.memory, None);
        }
    }

    fn write(&mut self, to: Buffer, at: u64, bytes: &[u8]) {
        let to = self.mapped(to, at, bytes.len());
        // SAFETY: the bytes lie in the mapped buffer (`mapped` asserts it), which the caller says that no one uses now.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    fn read(&self, from: Buffer, at: u64, bytes: &mut [u8]) {
        let from = self.mapped(from, at, bytes.len());
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    fn submit(&mut self, steps: &[Step]) -> Result<()> {
        assert!(!self.compute.runs, "what was submitted before has been waited for");
        self.record(steps).map_err(|e| fault(&self.name, format_args!("cannot run kernels: {e}")))?;
        self.compute.runs = true;
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        if std::mem::take(&mut self.compute.runs) {
            self.await_fence(&self.compute).map_err(|e| fault(&self.name, format_args!("a kernel failed: {e}")))?;
        }
        Ok(())
    }

    fn copy(&mut self, lane: usize, from: Buffer, to: Buffer, at: u64, bytes: u64) -> Result<()> {
        let (commands, source, target) = (&self.lanes[lane], self.held(from), self.held(to));
        assert!(!commands.runs, "what the lane copied before has been waited for");
        assert!(bytes <= source.bytes && at + bytes <= target.bytes, "bytes inside both buffers");
        let copied = self.begin(commands).and_then(|()| {
            let region = vk::BufferCopy::default().dst_offset(at).size(bytes);
            // SAFETY: the ranges lie in both buffers (asserted above), and the command buffer is being recorded.
            unsafe { self.device.cmd_copy_buffer(commands.buffer, source.buffer, target.buffer, &[region]) };
            self.finish(commands)
        });
        copied.map_err(|e| fault(&self.name, format_args!("cannot copy an expert: {e}")))?;
        self.lanes[lane].runs = true;
        Ok(())
    }

    fn wait_copy(&mut self, lane: usize) -> Result<()> {
        if std::mem::take(&mut self.lanes[lane].runs) {
            let lane = &self.lanes[lane];
            self.await_fence(lane).map_err(|e| fault(&self.name, format_args!("a copy failed: {e}")))?;
        }
        Ok(())
    }
}

impl Drop for Vulkan {
    fn drop(&mut self) {
        // SAFETY: nothing runs after the wait, or the device is lost; everything here was made of it, and is destroyed once.
        unsafe {
            let _ = self.device.device_wait_idle();
            for held in self.buffers.drain(..).flatten() {
                self.device.destroy_buffer(held.buffer, None);
                self.device.free_memory(held.memory, None);
            }
            for &pipeline in &self.pipelines {
                self.device.destroy_pipeline(pipeline, None);
            }
            self.device.destroy_pipeline_layout(self.layout, None);
            for commands in self.lanes.iter().chain([&self.compute]) {
                self.device.destroy_fence(commands.fence, None);
                self.device.destroy_command_pool(commands.pool, None);
            }
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}
