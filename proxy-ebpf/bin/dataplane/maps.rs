//! The maps and every access to them: the unsafe of map pointers lives here.
#![expect(
    unsafe_code,
    reason = "map values are raw pointers shared with other CPUs"
)]

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use proxy_ebpf::abi::{
    Address, Affinity, AffinityKey, Backend, Endpoint, Flow, Fragment, FragmentKey, Origins,
    PeerKey, PolicySet, PortKey, RANGE_PREFIX_BASE, Service, ServiceKey, Settings, Tick, VipFlow,
    bound, setting, slot_probe,
};
use proxy_ebpf::addr::{Addr, FlowKey, V4, V6};
use proxy_ebpf::event::{Counter, Event, EventBudget, Hook};
use proxy_ebpf::policy::PolicyTables;

use crate::recent::Recent;
use crate::track::Trace;

#[map]
static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(bound::ENDPOINT_SLOTS, 0);
/// Not 0: per-packet NAT has been used by the endpoint in this slot, so packets
/// to it may be replies to translate.
#[map]
static NAT_CLIENTS: Array<u32> = Array::with_max_entries(bound::ENDPOINT_SLOTS, 0);
#[map]
static ADDRESSES_V4: HashMap<V4, Address> =
    HashMap::with_max_entries(bound::ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static ADDRESSES_V6: HashMap<V6, Address> =
    HashMap::with_max_entries(bound::ADDRESSES, BPF_F_NO_PREALLOC);
/// Slots where pods of this node were found by their address, at its low bits:
/// guesses, which hold if the endpoint in the slot has the address.
#[map]
static HINTS_V4: Array<u32> = Array::with_max_entries(bound::ENDPOINT_SLOTS, 0);
#[map]
static HINTS_V6: Array<u32> = Array::with_max_entries(bound::ENDPOINT_SLOTS, 0);
#[map]
static CIDRS_V4: LpmTrie<V4, u32> = LpmTrie::with_max_entries(bound::CIDRS, 0);
#[map]
static CIDRS_V6: LpmTrie<V6, u32> = LpmTrie::with_max_entries(bound::CIDRS, 0);
/// Allocated ahead (30 MB for both families): a burst of new connections then
/// neither waits for memory nor fails below capacity.
#[map]
static FLOWS_V4: HashMap<FlowKey<V4>, Flow<V4>> = HashMap::with_max_entries(bound::FLOWS, 0);
#[map]
static FLOWS_V6: HashMap<FlowKey<V6>, Flow<V6>> = HashMap::with_max_entries(bound::FLOWS, 0);
#[map]
static RECENT_V4: PerCpuArray<Recent<V4>> = PerCpuArray::with_max_entries(Recent::<V4>::COUNT, 0);
#[map]
static RECENT_V6: PerCpuArray<Recent<V6>> = PerCpuArray::with_max_entries(Recent::<V6>::COUNT, 0);
#[map]
static VIP_FLOWS_V4: HashMap<FlowKey<V4>, VipFlow<V4>> =
    HashMap::with_max_entries(bound::VIP_FLOWS, BPF_F_NO_PREALLOC);
#[map]
static VIP_FLOWS_V6: HashMap<FlowKey<V6>, VipFlow<V6>> =
    HashMap::with_max_entries(bound::VIP_FLOWS, BPF_F_NO_PREALLOC);
#[map]
static FRAGMENTS_V4: LruHashMap<FragmentKey<V4>, Fragment> =
    LruHashMap::with_max_entries(bound::FRAGMENTS, 0);
#[map]
static FRAGMENTS_V6: LruHashMap<FragmentKey<V6>, Fragment> =
    LruHashMap::with_max_entries(bound::FRAGMENTS, 0);
#[map]
static SERVICES_V4: HashMap<ServiceKey<V4>, Service> =
    HashMap::with_max_entries(bound::SERVICES, BPF_F_NO_PREALLOC);
#[map]
static SERVICES_V6: HashMap<ServiceKey<V6>, Service> =
    HashMap::with_max_entries(bound::SERVICES, BPF_F_NO_PREALLOC);
#[map]
static SLOTS: Array<u32> = Array::with_max_entries(bound::SLOTS, 0);
#[map]
static BACKENDS_V4: Array<Backend<V4>> = Array::with_max_entries(bound::BACKENDS, 0);
#[map]
static BACKENDS_V6: Array<Backend<V6>> = Array::with_max_entries(bound::BACKENDS, 0);
#[map]
static AFFINITY_V4: LruHashMap<AffinityKey<V4>, Affinity> =
    LruHashMap::with_max_entries(bound::AFFINITY, 0);
#[map]
static AFFINITY_V6: LruHashMap<AffinityKey<V6>, Affinity> =
    LruHashMap::with_max_entries(bound::AFFINITY, 0);
#[map]
static POLICY_SETS: Array<PolicySet> = Array::with_max_entries(bound::POLICY_SETS, 0);
#[map]
static POLICY_PEERS: HashMap<PeerKey, u64> =
    HashMap::with_max_entries(bound::POLICY_PEERS, BPF_F_NO_PREALLOC);
#[map]
static POLICY_PORTS: HashMap<PortKey, u32> =
    HashMap::with_max_entries(bound::POLICY_PORTS, BPF_F_NO_PREALLOC);
#[map]
static POLICY_RANGES: LpmTrie<PortKey, u32> = LpmTrie::with_max_entries(bound::POLICY_RANGES, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::SLOTS, 0);
#[map]
static EVENT_BUDGET: PerCpuArray<EventBudget> = PerCpuArray::with_max_entries(1, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(bound::EVENT_BYTES, 0);
#[btf_map]
static SOCKET_ORIGINS: SkStorage<Origins> = SkStorage::new();

/// Where a packet's [`Trace`] lies while a program works on it: the stack of a
/// program and all it calls is 512 bytes, and what is not on the stack the
/// verifier does not follow value by value.
#[map]
static TRACES_V4: PerCpuArray<Trace<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static TRACES_V6: PerCpuArray<Trace<V6>> = PerCpuArray::with_max_entries(1, 0);

/// The maps of one address family.
pub(crate) trait Family: Addr {
    fn traces() -> &'static PerCpuArray<Trace<Self>>;
    fn addresses() -> &'static HashMap<Self, Address>;
    fn hints() -> &'static Array<u32>;
    fn cidrs() -> &'static LpmTrie<Self, u32>;
    /// The bit of [`Settings::flags`] that says whether `cidrs` holds anything.
    const CIDRS: u32;
    fn flows() -> &'static HashMap<FlowKey<Self>, Flow<Self>>;
    fn recent() -> &'static PerCpuArray<Recent<Self>>;
    fn vip_flows() -> &'static HashMap<FlowKey<Self>, VipFlow<Self>>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment>;
    fn services() -> &'static HashMap<ServiceKey<Self>, Service>;
    fn backends() -> &'static Array<Backend<Self>>;
    fn affinities() -> &'static LruHashMap<AffinityKey<Self>, Affinity>;
}

macro_rules! family {
    ($addr:ty, $cidrs_flag:expr, $addresses:ident, $hints:ident, $cidrs:ident, $flows:ident, $recent:ident,
     $vip_flows:ident, $fragments:ident, $services:ident, $backends:ident, $affinities:ident, $traces:ident) => {
        impl Family for $addr {
            const CIDRS: u32 = $cidrs_flag;
            #[inline(always)]
            fn traces() -> &'static PerCpuArray<Trace<Self>> {
                &$traces
            }
            #[inline(always)]
            fn addresses() -> &'static HashMap<Self, Address> {
                &$addresses
            }
            #[inline(always)]
            fn hints() -> &'static Array<u32> {
                &$hints
            }
            #[inline(always)]
            fn cidrs() -> &'static LpmTrie<Self, u32> {
                &$cidrs
            }
            #[inline(always)]
            fn flows() -> &'static HashMap<FlowKey<Self>, Flow<Self>> {
                &$flows
            }
            #[inline(always)]
            fn recent() -> &'static PerCpuArray<Recent<Self>> {
                &$recent
            }
            #[inline(always)]
            fn vip_flows() -> &'static HashMap<FlowKey<Self>, VipFlow<Self>> {
                &$vip_flows
            }
            #[inline(always)]
            fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment> {
                &$fragments
            }
            #[inline(always)]
            fn services() -> &'static HashMap<ServiceKey<Self>, Service> {
                &$services
            }
            #[inline(always)]
            fn backends() -> &'static Array<Backend<Self>> {
                &$backends
            }
            #[inline(always)]
            fn affinities() -> &'static LruHashMap<AffinityKey<Self>, Affinity> {
                &$affinities
            }
        }
    };
}

family!(
    V4,
    setting::CIDRS_V4,
    ADDRESSES_V4,
    HINTS_V4,
    CIDRS_V4,
    FLOWS_V4,
    RECENT_V4,
    VIP_FLOWS_V4,
    FRAGMENTS_V4,
    SERVICES_V4,
    BACKENDS_V4,
    AFFINITY_V4,
    TRACES_V4
);
family!(
    V6,
    setting::CIDRS_V6,
    ADDRESSES_V6,
    HINTS_V6,
    CIDRS_V6,
    FLOWS_V6,
    RECENT_V6,
    VIP_FLOWS_V6,
    FRAGMENTS_V6,
    SERVICES_V6,
    BACKENDS_V6,
    AFFINITY_V6,
    TRACES_V6
);

/// This CPU's trace. Programs of one CPU do not interrupt one another: they
/// run with bottom halves disabled.
#[inline(always)]
pub(crate) fn trace<A: Family>() -> Option<&'static mut Trace<A>> {
    // SAFETY: as above, nobody else has it; any bytes written by an earlier
    // run are a valid `Trace`, and so are the zeros at the start.
    A::traces()
        .get_ptr_mut(0)
        .map(|trace| unsafe { &mut *trace })
}

/// The endpoint behind the host interface `ifindex`, and its slot.
#[inline(always)]
pub(crate) fn endpoint_of(ifindex: u32) -> Option<(u32, &'static Endpoint)> {
    let mut probe = 0;
    while probe < bound::SLOT_PROBES {
        let slot = slot_probe(ifindex, probe);
        if let Some(endpoint) = ENDPOINTS.get(slot)
            && endpoint.ifindex == ifindex
            && slot != 0
        {
            return Some((slot, endpoint));
        }
        probe += 1;
    }
    None
}

#[inline(always)]
pub(crate) fn endpoint(slot: u32) -> Option<&'static Endpoint> {
    ENDPOINTS.get(slot)
}

/// The endpoint that has an address, if it is where such an address was last
/// found: an array read, where the hash look-up of [`address`] takes a call.
#[inline(always)]
pub(crate) fn hinted<A: Family>(address: &A) -> Option<(u32, &'static Endpoint)> {
    let slot = *A::hints().get(hint_index(address))?;
    let endpoint = ENDPOINTS.get(slot)?;
    (endpoint.ifindex != 0 && A::of(endpoint) == *address).then_some((slot, endpoint))
}

#[inline(always)]
pub(crate) fn hint<A: Family>(address: &A, slot: u32) {
    if let Some(hint) = A::hints().get_ptr_mut(hint_index(address)) {
        // SAFETY: a u32 in an array element; whoever reads it checks it.
        unsafe { *hint = slot };
    }
}

/// Pods of a node differ in the low bits of their addresses.
#[inline(always)]
fn hint_index<A: Family>(address: &A) -> u32 {
    address.low() & (bound::ENDPOINT_SLOTS - 1)
}

#[inline(always)]
pub(crate) fn is_nat_client(slot: u32) -> bool {
    NAT_CLIENTS.get(slot).is_some_and(|used| *used != 0)
}

#[inline(always)]
pub(crate) fn mark_nat_client(slot: u32) {
    if let Some(used) = NAT_CLIENTS.get_ptr_mut(slot) {
        // SAFETY: a u32 in an array element; every writer stores the same value.
        unsafe { *used = 1 };
    }
}

#[inline(always)]
pub(crate) fn settings() -> Settings {
    SETTINGS.get(0).copied().unwrap_or_default()
}

#[inline(always)]
pub(crate) fn address<A: Family>(address: &A) -> Option<&'static Address> {
    // SAFETY: the element may be reused after a deletion (RCU keeps it mapped):
    // at worst one packet sees the entry that has just replaced it.
    unsafe { A::addresses().get(address) }
}

/// The peer class of an address that is in no `ADDRESSES` entry.
#[inline(always)]
pub(crate) fn cidr_class<A: Family>(address: A, settings_flags: u32) -> u32 {
    if settings_flags & A::CIDRS == 0 {
        return 0;
    }
    let length = if A::V6 { 128 } else { 32 };
    A::cidrs()
        .get(Key::new(length, address))
        .copied()
        .unwrap_or(0)
}

#[inline(always)]
pub(crate) fn flow<A: Family>(key: &FlowKey<A>) -> Option<&'static mut Flow<A>> {
    // SAFETY: the entry stays mapped for this run (RCU). Two CPUs may write it
    // at once: fields are whole words, and each write is right by itself.
    A::flows()
        .get_ptr_mut(key)
        .map(|flow| unsafe { &mut *flow })
}

/// Makes a flow; `Err` if the key exists or the table is full.
#[inline(always)]
pub(crate) fn open_flow<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), i32> {
    A::flows().insert(key, flow, BPF_NOEXIST.into())
}

#[inline(always)]
pub(crate) fn replace_flow<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), i32> {
    A::flows().insert(key, flow, BPF_ANY.into())
}

#[inline(always)]
pub(crate) fn forget_flow<A: Family>(key: &FlowKey<A>) {
    // A failure means that it is gone already.
    A::flows().remove(key).ok();
}

/// This CPU's entry for connections of that number.
#[inline(always)]
pub(crate) fn recent<A: Family>(index: u32) -> Option<&'static mut Recent<A>> {
    // SAFETY: as for `trace`.
    A::recent()
        .get_ptr_mut(index)
        .map(|recent| unsafe { &mut *recent })
}

#[inline(always)]
pub(crate) fn vip_flow<A: Family>(key: &FlowKey<A>) -> Option<&'static mut VipFlow<A>> {
    // SAFETY: as for `flow`.
    A::vip_flows()
        .get_ptr_mut(key)
        .map(|flow| unsafe { &mut *flow })
}

#[inline(always)]
pub(crate) fn replace_vip_flow<A: Family>(key: &FlowKey<A>, flow: &VipFlow<A>) -> Result<(), i32> {
    A::vip_flows().insert(key, flow, BPF_ANY.into())
}

#[inline(always)]
pub(crate) fn service<A: Family>(key: &ServiceKey<A>) -> Option<&'static Service> {
    // SAFETY: as for `address`.
    unsafe { A::services().get(key) }
}

/// The backend id in a slot.
#[inline(always)]
pub(crate) fn slot(index: u32) -> Option<u32> {
    SLOTS.get(index).copied()
}

#[inline(always)]
pub(crate) fn backend<A: Family>(id: u32) -> Option<&'static Backend<A>> {
    A::backends().get(id)
}

#[inline(always)]
pub(crate) fn affinity<A: Family>(key: &AffinityKey<A>) -> Option<Affinity> {
    // SAFETY: copied at once; an entry evicted meanwhile gives another
    // client's backend, which is a valid choice too.
    unsafe { A::affinities().get(key) }.copied()
}

#[inline(always)]
pub(crate) fn remember_affinity<A: Family>(key: &AffinityKey<A>, value: &Affinity) {
    // An LRU makes room; a failure costs one client its affinity.
    A::affinities().insert(key, value, BPF_ANY.into()).ok();
}

#[inline(always)]
pub(crate) fn fragment<A: Family>(key: &FragmentKey<A>) -> Option<Fragment> {
    // SAFETY: copied at once; as for `affinity`, and reassembly at the
    // receiver refuses what does not belong together.
    unsafe { A::fragments().get(key) }.copied()
}

#[inline(always)]
pub(crate) fn remember_fragment<A: Family>(key: &FragmentKey<A>, value: &Fragment) {
    // An LRU makes room; a failure drops the later fragments, counted there.
    A::fragments().insert(key, value, BPF_ANY.into()).ok();
}

#[inline(always)]
pub(crate) fn forget_fragment<A: Family>(key: &FragmentKey<A>) {
    A::fragments().remove(key).ok();
}

#[inline(always)]
pub(crate) fn origins(
    ctx: &aya_ebpf::programs::SockAddrContext,
    create: bool,
) -> Option<&'static mut Origins> {
    // SAFETY: a null pointer is checked; the storage lives as long as the
    // socket, which the hook holds.
    unsafe {
        let pointer = if create {
            SOCKET_ORIGINS.get_or_insert_ptr_mut(ctx, None)
        } else {
            SOCKET_ORIGINS.get_ptr_mut(ctx)
        };
        pointer.as_mut()
    }
}

#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: no arguments, no side effects.
    unsafe { aya_ebpf::helpers::bpf_get_prandom_u32() }
}

#[inline(always)]
pub(crate) fn count(counter: Counter, hook: Hook) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter.slot(hook)) {
        // SAFETY: per CPU, and programs are not interrupted by one another here.
        unsafe { *value += 1 };
    }
}

/// Whether this CPU may report one more event in this tick.
#[inline(always)]
pub(crate) fn spend_event(now: Tick, limit: u32) -> bool {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: per CPU, as for `count`.
    let budget = unsafe { &mut *budget };
    if budget.tick != now {
        *budget = EventBudget {
            tick: now,
            spent: 0,
        };
    }
    budget.spent += 1;
    budget.spent <= limit
}

/// Fills a record of the ring in place; `false` if the ring is full.
#[inline(always)]
pub(crate) fn submit_event(fill: impl FnOnce(&mut Event)) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return false;
    };
    // SAFETY: `fill` assigns the whole record; integers have no invalid bit patterns.
    fill(unsafe { entry.assume_init_mut() });
    entry.submit(0);
    true
}

/// The policy maps as [`PolicyTables`].
pub(crate) struct Policy;

impl PolicyTables for Policy {
    #[inline(always)]
    fn set(&self, index: u32) -> Option<PolicySet> {
        POLICY_SETS.get(index).copied()
    }

    #[inline(always)]
    fn peer_bits(&self, word: u32, class: u32) -> Option<u64> {
        // SAFETY: as for `address`.
        unsafe { POLICY_PEERS.get(PeerKey { word, class }) }.copied()
    }

    #[inline(always)]
    fn port_class(&self, key: PortKey) -> Option<u32> {
        // SAFETY: as for `address`.
        unsafe { POLICY_PORTS.get(key) }.copied()
    }

    #[inline(always)]
    fn range_class(&self, key: PortKey) -> Option<u32> {
        POLICY_RANGES
            .get(Key::new(RANGE_PREFIX_BASE + 16, key))
            .copied()
    }
}
