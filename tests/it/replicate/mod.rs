//! Replication between devices in one process, over real drives and an object store that can be looked into. Rounds are
//! called by the tests, so nothing depends on time.

mod aside;
mod attributes;
mod background;
mod checkpoint;
mod crash;
mod device;
mod economy;
mod exchange;
mod faults;
mod overtaken;
mod recorded;
mod restless;
mod tamper;
mod world;
