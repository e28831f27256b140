//! The POSIX suite: cases that any file system of ours passes, run on a real mount of each.
//!
//! A case is a function that gets an empty directory of its own. A target is a function that runs a case on a mount of
//! some file system: `fn(name, case)`. The table at the end makes each case a test of each target; a new target is one
//! line there.

mod acls;
mod attributes;
mod content;
mod directories;
mod locks;
pub mod mappings;
mod names;
mod permissions;
mod renames;
pub mod support;
mod xattrs;

use std::path::Path;
use std::sync::Arc;

use cairn_platform_memory::MemoryFs;

use crate::harness::backed::BackedFs;
use crate::harness::{Mount, SharedMount};

/// Target: the file system in memory.
fn on_memory(name: &str, case: fn(&Path)) {
    static SHARED: SharedMount = SharedMount::new();
    SHARED.with(name, || Mount::new(Arc::new(memory())), case);
}

/// Target: contents in backing files, which the kernel reads and writes by itself where it may.
fn on_backing_files(name: &str, case: fn(&Path)) {
    static SHARED: SharedMount = SharedMount::new();
    SHARED.with(name, || Mount::new(Arc::new(BackedFs::new(memory()))), case);
}

/// A file system in memory whose root belongs to whoever runs the tests.
pub fn memory() -> MemoryFs {
    MemoryFs::new().owned_by(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

macro_rules! suites {
    ([$($target:ident = $with:path),* $(,)?] $cases:tt) => { $(suite! { $target $with; $cases })* };
}

macro_rules! suite {
    ($target:ident $with:path; { $($module:ident: [$($case:ident),* $(,)?]),* $(,)? }) => {
        mod $target {
            $(mod $module {
                $(#[test]
                fn $case() {
                    $with(stringify!($case), crate::posix::$module::$case);
                })*
            })*
        }
    };
}

suites! {
    [
        memory = crate::posix::on_memory,
        backing_files = crate::posix::on_backing_files,
        drive = crate::drive::mounted::with_passthrough,
        drive_without_passthrough = crate::drive::mounted::without_passthrough,
    ]
    {
        names: [
            what_is_made_is_found,
            a_name_that_was_missing_is_found_once_made,
            exclusive_create_fails_where_the_name_is_taken,
            nodes_of_every_kind_can_be_made,
            a_fifo_carries_bytes,
            a_socket_can_be_connected_to,
            symbolic_links_keep_their_target,
            hard_links_are_one_file,
            names_are_bytes,
            names_have_255_bytes_at_most,
            unlink_and_rmdir_refuse_the_wrong_kind,
            directories_count_their_subdirectories,
            every_change_of_a_directory_shows_in_its_times,
            an_unlinked_file_lives_while_it_is_open,
            a_file_without_a_name_cannot_be_made,
        ],
        renames: [
            rename_replaces_in_one_step,
            rename_over_open_file_keeps_reader_alive,
            rename_between_hard_links_does_nothing,
            rename_refuses_the_wrong_kind,
            a_directory_cannot_be_moved_below_itself,
            a_moved_directory_has_its_new_parent_above,
            noreplace_refuses_a_taken_name,
            exchange_swaps_whatever_is_there,
            readers_never_miss_a_file_that_is_being_replaced,
            concurrent_directory_moves_make_no_cycle,
        ],
        attributes: [
            times_keep_nanoseconds_before_1970_and_after_2038,
            times_beyond_what_is_kept_become_the_first_or_the_last,
            utimensat_knows_now_and_omit,
            times_of_a_symbolic_link_are_its_own,
            a_write_after_utimensat_shows_at_once,
            size_and_blocks_follow_every_descriptor,
            truncation_sets_times_and_zeroes,
            a_sparse_file_counts_by_blocks,
            a_file_ends_before_8_exbibytes,
            modes_are_kept_and_the_umask_applies,
            owner_and_group_can_be_changed,
            statfs_counts_what_is_written,
            a_birth_time_is_not_shown,
        ],
        content: [
            what_was_written_is_read,
            writes_of_any_size_land_where_they_belong,
            append_writes_go_to_the_end,
            appends_of_many_writers_are_all_kept,
            opening_with_truncation_empties,
            a_handle_does_only_what_it_was_opened_for,
            two_handles_see_each_others_writes,
            reading_and_writing_go_on_after_a_reopen,
            fsync_of_files_and_directories_succeeds,
            fallocate_reserves,
            fallocate_punches_holes,
            fallocate_zeroes_ranges,
            fallocate_refuses_what_is_not_offered,
            lseek_finds_data_and_holes,
            copy_file_range_copies,
            copy_file_range_within_one_file,
        ],
        directories: [
            a_listing_is_stable_under_concurrent_change,
            a_listing_ends_although_every_entry_is_renamed,
            rewinding_shows_what_is_new,
            seeking_returns_to_a_place,
            listed_numbers_and_types_are_those_of_the_files,
            a_removed_directory_takes_nothing_more,
            many_threads_work_in_one_directory,
        ],
        xattrs: [
            attributes_are_kept_byte_for_byte,
            missing_attributes_and_small_buffers_are_told_apart,
            create_and_replace_say_what_they_expect,
            limits_are_those_of_linux,
            attributes_follow_the_file,
            user_attributes_are_of_files_and_directories,
            trusted_and_security_attributes_are_for_root,
            a_write_drops_file_capabilities,
        ],
        locks: [
            flock_excludes,
            waiters_for_a_lock_hold_up_nobody,
            posix_locks_are_between_processes,
            a_signal_ends_the_wait_for_a_lock,
        ],
        acls: [
            a_list_and_the_mode_are_kept_in_step,
            what_is_made_inherits_the_default_list,
            without_a_default_list_the_umask_applies,
            lists_are_refused_where_ext4_refuses_them,
            a_list_decides_who_may_do_what,
            setfacl_and_getfacl_agree,
        ],
        permissions: [
            modes_decide_who_may_do_what,
            a_directory_that_is_not_writable_keeps_its_names,
            files_belong_to_whoever_makes_them,
            a_set_group_id_directory_passes_its_group_on,
            in_a_sticky_directory_only_owners_remove,
            a_write_by_an_ordinary_user_clears_set_id_bits,
            a_change_of_owner_clears_set_id_bits,
            programs_can_be_run,
            a_program_that_runs_is_not_written_to,
        ],
        mappings: [
            stores_to_a_shared_mapping_reach_the_file,
            a_mapping_outlives_its_descriptor_and_its_name,
            a_synced_store_moves_the_modification_time,
            a_page_from_a_mapping_is_not_appended,
        ],
    }
}
