//! The regions of an agent, by name.

use std::sync::{Arc, PoisonError, RwLock};

use transfer_proto::id::RegionId;
use transfer_proto::proto::metadata::{REGIONS_MAX, RegionInfo};

use super::{RegionCore, Unnamed};
use crate::error::{Error, Result};

/// Slots with generations, so that the name of a region that was closed never names a later one.
#[derive(Debug, Default)]
pub(crate) struct RegionTable {
    slots: RwLock<Vec<Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    core: Option<Arc<RegionCore>>,
}

impl RegionTable {
    /// Gives the region a name.
    ///
    /// # Errors
    /// [`Error::TooLarge`] with as many regions as an agent may have.
    pub(crate) fn insert(&self, region: Unnamed) -> Result<Arc<RegionCore>> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let free = slots.iter().position(|slot| slot.core.is_none());
        let at = free.unwrap_or(slots.len());
        if at >= REGIONS_MAX {
            let (what, max) = ("regions of an agent", REGIONS_MAX as u64);
            return Err(Error::TooLarge { what, value: max + 1, max });
        }
        if free.is_none() {
            slots.push(Slot::default());
        }
        let slot = &mut slots[at];
        let id = RegionId::new(u32::try_from(at).unwrap_or(u32::MAX), slot.generation);
        let core = Arc::new(region.named(id));
        slot.core = Some(Arc::clone(&core));
        Ok(core)
    }

    /// The region of that name, if it is still there.
    pub(crate) fn find(&self, id: RegionId) -> Option<Arc<RegionCore>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get(id.slot() as usize)?;
        if slot.generation == id.generation() { slot.core.clone() } else { None }
    }

    /// Takes the name away. False where it was gone already.
    pub(crate) fn remove(&self, id: RegionId) -> bool {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slots.get_mut(id.slot() as usize) else { return false };
        if slot.generation != id.generation() || slot.core.is_none() {
            return false;
        }
        slot.core = None;
        slot.generation = slot.generation.wrapping_add(1);
        true
    }

    /// Makes every generation void.
    pub(crate) fn raise_all(&self) {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.iter().filter_map(|slot| slot.core.as_ref()).for_each(|core| core.raise_all());
    }

    /// All regions, as peers are told of them.
    pub(crate) fn infos(&self) -> Vec<RegionInfo> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.iter().filter_map(|slot| slot.core.as_ref()).map(|core| core.info()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Ledger, RegionOptions, adopt};
    use super::*;

    #[test]
    fn a_name_never_comes_to_mean_another_region() {
        let table = RegionTable::default();
        let ledger = Arc::new(Ledger::create("test").unwrap());
        let named = |byte, label| adopt(vec![byte], &RegionOptions::new(label), &ledger).unwrap();
        let first = table.insert(named(1, "a")).unwrap().id;
        assert!(table.remove(first));
        assert!(!table.remove(first));
        let second = table.insert(named(2, "b")).unwrap().id;
        assert_eq!(first.slot(), second.slot());
        assert!(table.find(first).is_none());
        assert_eq!(table.find(second).unwrap().label, "b");
        assert_eq!(table.infos().len(), 1);
    }
}
