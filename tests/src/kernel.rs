//! The kernel programs without any traffic: the object loaded with maps of its
//! own, packets run through it one by one (`BPF_PROG_TEST_RUN`).
//!
//! Runs in a network namespace of its own, whose interfaces stand for the pods'
//! host sides: the programs learn the endpoint from the interface.

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};
use fairlead_proxy::datapath::load::{VERIFIER_LOG, retried};
use proxy_ebpf::abi::{Endpoint, pin};
use proxy_ebpf::event::{Counter, Hook};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::namespace::Namespace;
use crate::packet::Mac;

/// Interface of pod number 0; the others follow.
const FIRST_IFINDEX: u32 = 1001;
/// Any interface but the pods': where packets from outside come in.
pub const UPLINK_IFINDEX: u32 = 7;
/// Room for a packet that grows.
const OUTPUT_BYTES: usize = 9000;

/// What a program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Into a pod (`TC_ACT_REDIRECT`).
    Redirect,
    /// On its way (`TC_ACT_OK`, `TCX_NEXT`).
    Pass,
    Drop,
    Other(u32),
}

impl Action {
    fn of(code: u32) -> Self {
        match code {
            7 => Self::Redirect,
            0 | u32::MAX => Self::Pass,
            2 => Self::Drop,
            other => Self::Other(other),
        }
    }
}

/// The outcome of one run.
#[derive(Clone, Debug)]
pub struct Run {
    pub action: Action,
    pub frame: Vec<u8>,
    /// What was counted meanwhile, events lost left out.
    pub counted: Vec<Counter>,
}

/// The loaded object and the namespace its test interfaces are in. Its thread
/// has moved there and stays.
pub struct Kernel {
    ebpf: Ebpf,
    counters: PerCpuArray<MapData, u64>,
    endpoints: Array<MapData, Endpoint>,
    totals: Vec<u64>,
    _namespace: Namespace,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kernel")
    }
}

/// The MAC address of pod number `index`, and of its host side.
pub fn macs(index: usize) -> (Mac, Mac) {
    let number = u8::try_from(index).expect("few pods");
    ([0x0a, 0, 0, 0, 1, number], [0x0a, 0, 0, 0, 2, number])
}

/// The interface of pod number `index`.
pub fn ifindex(index: usize) -> u32 {
    FIRST_IFINDEX + u32::try_from(index).expect("few pods")
}

/// The slot of pod number `index`.
pub fn slot(index: usize) -> u32 {
    proxy_ebpf::abi::slot_probe(ifindex(index), 0)
}

impl Kernel {
    /// Loads `object` with private maps, of other sizes where `sizes` says so, and
    /// makes interfaces for `pods` pods.
    pub fn load(object: &[u8], pods: usize, sizes: &[(&'static str, u32)]) -> Self {
        let namespace = Namespace::new("kernel");
        for index in 0..pods {
            namespace.ip(&format!(
                "link add p{index} index {} type veth peer name q{index}",
                ifindex(index)
            ));
            namespace.ip(&format!("link set p{index} up"));
            namespace.ip(&format!("link set q{index} up"));
        }
        let file = std::fs::File::open(namespace.path()).unwrap();
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind).unwrap();
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VERIFIER_LOG);
        for (map, size) in sizes {
            loader.map_max_entries(map, *size);
        }
        let mut ebpf = loader.load(object).unwrap();
        for name in [pin::POD_OUT, pin::POD_IN] {
            let program = program(&mut ebpf, name);
            retried(|| program.load()).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        }
        let counters = PerCpuArray::try_from(ebpf.take_map(pin::COUNTERS).unwrap()).unwrap();
        let endpoints = Array::try_from(ebpf.take_map(pin::ENDPOINTS).unwrap()).unwrap();
        let totals = vec![0; Counter::SLOTS as usize];
        Self {
            ebpf,
            counters,
            endpoints,
            totals,
            _namespace: namespace,
        }
    }

    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// One of the object's hash maps, to write to.
    pub fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        let map = self
            .ebpf
            .map_mut(name)
            .unwrap_or_else(|| panic!("no map {name}"));
        HashMap::try_from(map).unwrap()
    }

    /// Sets an element of one of the object's arrays.
    pub fn set_array<V: Pod>(&mut self, name: &str, index: u32, value: V) {
        let map = self
            .ebpf
            .map_mut(name)
            .unwrap_or_else(|| panic!("no map {name}"));
        let mut array: Array<&mut MapData, V> = Array::try_from(map).unwrap();
        array.set(index, value, 0).unwrap();
    }

    /// Removes all entries of a hash map.
    pub fn clear<K: Pod, V: Pod>(&mut self, name: &str) {
        let mut map = self.hash::<K, V>(name);
        let keys: Vec<K> = map.keys().map(Result::unwrap).collect();
        for key in keys {
            map.remove(&key).unwrap();
        }
    }

    pub fn endpoint(&self, slot: u32) -> Endpoint {
        self.endpoints.get(&slot, 0).unwrap()
    }

    pub fn set_endpoint(&mut self, slot: u32, endpoint: Endpoint) {
        self.endpoints.set(slot, endpoint, 0).unwrap();
    }

    /// A frame that pod number `pod` sends.
    pub fn from_pod(&mut self, pod: usize, frame: &[u8]) -> Run {
        self.run(
            pin::POD_OUT,
            Hook::PodOut,
            frame,
            ifindex(pod),
            ifindex(pod),
        )
    }

    /// A frame that the host's stack sends to pod number `pod`; it came in from
    /// interface `from`, 0 for the host itself.
    pub fn to_pod(&mut self, pod: usize, frame: &[u8], from: u32) -> Run {
        self.run(pin::POD_IN, Hook::PodIn, frame, ifindex(pod), from)
    }

    fn run(&mut self, name: &str, hook: Hook, frame: &[u8], ifindex: u32, from: u32) -> Run {
        let mut output = vec![0; OUTPUT_BYTES];
        let context = context(ifindex, from);
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut output);
        options.ctx_in = Some(&context);
        let result = program(&mut self.ebpf, name)
            .test_run(options)
            .unwrap_or_else(|error| panic!("{name} cannot run: {error:?}"));
        output.truncate(usize::try_from(result.data_size_out).expect("32 bits"));
        Run {
            action: Action::of(result.return_value),
            frame: output,
            counted: self.counted(hook),
        }
    }

    /// Nanoseconds per run, over `repeat` runs of the same frame.
    pub fn time(&mut self, name: &str, frame: &[u8], ifindex: u32, repeat: u32) -> f64 {
        let context = context(ifindex, ifindex);
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(&context);
        options.repeat = repeat;
        let result = program(&mut self.ebpf, name).test_run(options).unwrap();
        // The kernel divides by the number of runs already.
        result.duration.as_secs_f64() * 1e9
    }

    /// Bytes of kernel memory that a map takes.
    pub fn map_bytes(&self, name: &str) -> u64 {
        let map = self
            .ebpf
            .map(name)
            .unwrap_or_else(|| panic!("no map {name}"));
        let (Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data)) = map else {
            panic!("{name} is of another type");
        };
        let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(data.fd()));
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        bytes.expect("maps tell").trim().parse().unwrap()
    }

    /// What has been counted since the last call.
    fn counted(&mut self, hook: Hook) -> Vec<Counter> {
        let mut found = Vec::new();
        for counter in Counter::ALL {
            let slot = counter.slot(hook);
            let total: u64 = self.counters.get(&slot, 0).unwrap().iter().sum();
            let known = &mut self.totals[slot as usize];
            if total != *known {
                *known = total;
                if *counter != Counter::EventsLost {
                    found.push(*counter);
                }
            }
        }
        found
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    ebpf.program_mut(name)
        .unwrap_or_else(|| panic!("no program {name}"))
        .try_into()
        .unwrap()
}

/// `struct __sk_buff` (include/uapi/linux/bpf.h) with its interfaces filled in.
fn context(ifindex: u32, ingress_ifindex: u32) -> [u8; 192] {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[INGRESS_IFINDEX..IFINDEX].copy_from_slice(&ingress_ifindex.to_ne_bytes());
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}
