//! Binding memory windows and taking them back.

use transfer_sys::verbs::sys;

use crate::engine::Step;
use crate::memory::window_slot;
use crate::shared::{MRS, MWS, Mw, Shared};

/// What a window is to be bound to.
#[derive(Clone, Copy)]
pub(crate) struct Binding {
    pub(crate) window: u32,
    pub(crate) key: u32,
    pub(crate) region: u32,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) access: u32,
}

/// Takes back the key of a window of queue pair `slot`.
pub(crate) fn invalidate(shared: &mut Shared, slot: u32, key: u32) -> Step {
    let named = |mw: &Mw| mw.object.live && mw.bound && mw.key == key && mw.qp == slot;
    let window = window_slot(key).filter(|window| shared.mws.get(*window).is_some_and(named));
    let Some(window) = window else { return Step::Failed(sys::IBV_WC_LOC_QP_OP_ERR) };
    unbind(shared, window);
    Step::Done
}

/// Takes window `window` from what it is bound to.
pub(crate) fn unbind(shared: &mut Shared, window: usize) {
    let mw = &mut shared.mws[window];
    if std::mem::take(&mut mw.bound) {
        shared.mrs[mw.mr as usize].object.users -= 1;
    }
}

/// Gives a window of queue pair `slot` a key.
pub(crate) fn bind(shared: &mut Shared, slot: u32, binding: Option<Binding>) -> Step {
    const REFUSED: Step = Step::Failed(sys::IBV_WC_MW_BIND_ERR);
    let Some(binding) = binding else { return REFUSED };
    let (window, region) = (binding.window as usize, binding.region as usize);
    if window >= MWS || region >= MRS {
        return REFUSED;
    }
    let (mw, mr, pd) = (&shared.mws[window], &shared.mrs[region], shared.qps[slot as usize].pd);
    let writes = binding.access & sys::IBV_ACCESS_REMOTE_WRITE != 0;
    let known = mw.object.live && mr.object.live && mw.pd == pd && mr.pd == pd;
    let allowed = mr.access & sys::IBV_ACCESS_MW_BIND != 0
        && (!writes || mr.access & sys::IBV_ACCESS_LOCAL_WRITE != 0)
        && mw.key >> 8 == binding.key >> 8;
    let offset = binding.addr.checked_sub(mr.base);
    let fits = offset.is_some_and(|offset| offset <= mr.len && binding.len <= mr.len - offset);
    if !known || !allowed || !fits || mw.bound {
        return REFUSED;
    }
    let Binding { key, addr: base, len, access, region: mr, .. } = binding;
    let mw = &mut shared.mws[window];
    *mw = Mw { bound: true, key, mr, qp: slot, base, len, access, ..*mw };
    shared.mrs[region].object.users += 1;
    Step::Done
}
