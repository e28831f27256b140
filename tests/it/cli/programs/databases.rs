//! SQLite, with several processes on one database.

use super::super::world::World;
use super::{Pair, shell};

const WRITERS: usize = 4;
const TRANSACTIONS: usize = 40;

/// Writers at once, each transaction made durable, and a reader that sees whole transactions only.
const LOAD: &str = r#"
    writer() {
        { echo '.timeout 1000000000'; for n in $(seq TRANSACTIONS); do
            echo "begin immediate; insert into t values($1, $n, randomblob(3000)); update total set n = n + 1; commit;"
        done; } | sqlite3 -bail app.db
    }
    writers=()
    for number in $(seq WRITERS); do writer $number & writers+=($!); done
    for _ in $(seq 10); do
        seen=$(sqlite3 -cmd '.timeout 1000000000' app.db 'select (select count(*) from t) - (select n from total)')
        test "$seen" = 0
    done
    for process in "${writers[@]}"; do wait $process; done
    # Of connections that are closed at the same time none may be the last, which removes the log.
    sqlite3 app.db 'pragma wal_checkpoint(truncate)' >/dev/null
"#;

pub fn sqlite_in_wal_mode_under_load_is_whole_on_both_machines(_world: &World, pair: &Pair<'_>) {
    sqlite(pair, "wal");
}

pub fn sqlite_with_a_rollback_journal_under_load_is_whole_on_both_machines(_world: &World, pair: &Pair<'_>) {
    sqlite(pair, "delete");
}

fn sqlite(pair: &Pair<'_>, mode: &str) {
    let tables = format!(
        "pragma journal_mode={mode}; create table t(writer, n, filler); create table total(n); insert into total values(0)"
    );
    shell(pair.paths()[0], &format!("sqlite3 app.db '{tables}'"));
    let load = LOAD.replace("TRANSACTIONS", &TRANSACTIONS.to_string()).replace("WRITERS", &WRITERS.to_string());
    // Looking changes nothing; else both machines would make the files beside the database.
    let check = "test ! -e app.db-wal && test ! -e app.db-journal && sqlite3 'file:app.db?immutable=1' \
                 'pragma integrity_check; select count(*) from t; select n from total'";
    for turn in [0, 1] {
        shell(pair.paths()[turn], &load);
        shell(pair.paths()[turn], "test \"$(sqlite3 app.db 'pragma integrity_check')\" = ok");
        pair.carry(turn);
        let rows = (turn + 1) * WRITERS * TRANSACTIONS;
        for path in pair.paths() {
            assert_eq!(shell(path, check), format!("ok\n{rows}\n{rows}\n"));
        }
    }
}
