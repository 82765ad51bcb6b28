package auditlog_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog"
	"kluis/auditlog/leaf"
	"kluis/authz"
)

func text(id [16]byte) string { return uuid.UUID(id).String() }

// TestTampering alters one thing after another in a log that is whole, and wants
// each found, and nothing else.
func TestTampering(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.read()
	w.refuse(time.Now())
	second := w.read()
	w.catchUp()
	restore := w.snapshot()
	for name, c := range map[string]struct {
		alter func(w *world, first, second [16]byte)
		want  []auditlog.What
	}{
		"nothing": {func(*world, [16]byte, [16]byte) {}, nil},
		"a record deleted": {func(w *world, first, _ [16]byte) {
			w.tamper(`DELETE FROM access_log WHERE interaction_id = $1::uuid`, text(first))
		}, []auditlog.What{auditlog.RowMissing, auditlog.NotRecorded}},
		"a refusal deleted": {func(w *world, _, _ [16]byte) {
			w.tamper(`DELETE FROM access_log WHERE receipt = ''`)
		}, []auditlog.What{auditlog.RowMissing}},
		"a record changed": {func(w *world, first, second [16]byte) {
			w.tamper(`UPDATE access_log a SET record = b.record FROM access_log b WHERE a.interaction_id = $1::uuid AND b.interaction_id = $2::uuid`, text(first), text(second))
		}, []auditlog.What{auditlog.RowChanged, auditlog.RowBad}},
		"a refusal's time changed": {func(w *world, _, _ [16]byte) {
			// Byte 40 is the last of the record's time.
			w.tamper(`UPDATE access_log SET record = set_byte(record, 47, get_byte(record, 47) # 1) WHERE receipt = ''`)
		}, []auditlog.What{auditlog.RowChanged}},
		"a salt changed": {func(w *world, first, _ [16]byte) {
			w.tamper(`UPDATE access_log SET salt = decode(repeat('00', 16), 'hex') WHERE interaction_id = $1::uuid`, text(first))
		}, []auditlog.What{auditlog.RowChanged}},
		"a record inserted": {func(w *world, _, _ [16]byte) {
			w.refuse(time.Now())
		}, []auditlog.What{auditlog.RowUnlogged}},
		"a journal entry deleted": {func(w *world, first, _ [16]byte) {
			w.tamper(`DELETE FROM journal_entry WHERE position(decode(replace($1, '-', ''), 'hex') IN entry) > 0`, text(first))
		}, []auditlog.What{auditlog.RowMissing, auditlog.JournalBroken, auditlog.NotJournaled}},
		"a journal entry changed": {func(w *world, first, _ [16]byte) {
			w.tamper(`UPDATE journal_entry SET entry = set_byte(entry, length(entry) - 1, get_byte(entry, length(entry) - 1) # 1)
				WHERE position(decode(replace($1, '-', ''), 'hex') IN entry) > 0`, text(first))
		}, []auditlog.What{auditlog.RowChanged, auditlog.JournalBroken, auditlog.ReceiptBad, auditlog.Another}},
		"a legal file changed": {func(w *world, _, _ [16]byte) {
			w.tamper(`UPDATE legal_file SET file = set_byte(file, length(file) - 1, get_byte(file, length(file) - 1) # 1) WHERE version = 2`)
		}, []auditlog.What{auditlog.RowChanged, auditlog.RowBad}},
		"a legal file rolled back": {func(w *world, _, _ [16]byte) {
			w.tamper(`DELETE FROM legal_file WHERE version = 3`)
		}, []auditlog.What{auditlog.RowMissing, auditlog.OpenedUnstored}},
		"a legal file in between deleted": {func(w *world, _, _ [16]byte) {
			w.tamper(`DELETE FROM legal_file WHERE version = 2`)
		}, []auditlog.What{auditlog.RowMissing, auditlog.FileBroken}},
		"the first legal file deleted": {func(w *world, _, _ [16]byte) {
			w.tamper(`DELETE FROM legal_file WHERE version = 1`)
		}, []auditlog.What{auditlog.RowMissing, auditlog.FileBroken}},
		"a legal file replaced by its older version": {func(w *world, _, _ [16]byte) {
			w.tamper(`UPDATE legal_file SET file = (SELECT file FROM legal_file WHERE version = 2) WHERE version = 3`)
		}, []auditlog.What{auditlog.RowChanged, auditlog.RowBad, auditlog.OpenedUnstored}},
		"a legal file inserted that nobody sealed": {func(w *world, _, _ [16]byte) {
			w.tamper(`INSERT INTO legal_file (ean, version, file, sealed_at) SELECT ean, 4, set_byte(file, 100, get_byte(file, 100) # 1), sealed_at FROM legal_file WHERE version = 3`)
		}, []auditlog.What{auditlog.RowUnlogged, auditlog.RowBad}},
		"a legal file that is not one": {func(w *world, _, _ [16]byte) {
			w.tamper(`UPDATE legal_file SET file = '\x00' WHERE version = 3`)
		}, []auditlog.What{auditlog.RowChanged, auditlog.RowBad, auditlog.OpenedUnstored}},
		"a supplier record deleted": {func(w *world, _, _ [16]byte) { w.tamper(`DELETE FROM supplier`) }, []auditlog.What{auditlog.RowMissing}},
		"a statement on blocks changed": {func(w *world, _, _ [16]byte) {
			w.tamper(`UPDATE audit_statement SET statement = set_byte(statement, length(statement) - 1, 0) WHERE kind = 7`)
		}, []auditlog.What{auditlog.RowChanged}},
		"a leaf deleted": {func(w *world, first, _ [16]byte) {
			w.tamper(`DELETE FROM audit_leaf WHERE id = $1::uuid`, text(first))
		}, []auditlog.What{auditlog.LeafMissing, auditlog.RowUnlogged}},
		"a hash of a leaf changed": {func(w *world, _, _ [16]byte) {
			w.tamper(`UPDATE audit_hash SET hash = sha256(hash) WHERE index = 0`)
		}, []auditlog.What{auditlog.RowChanged, auditlog.TreeDamaged, auditlog.LogForked}},
		"a hash of the tree changed": {func(w *world, _, _ [16]byte) {
			w.tamper(`UPDATE audit_hash SET hash = sha256(hash) WHERE index = 2`)
		}, []auditlog.What{auditlog.TreeDamaged}},
		"a hash deleted": {func(w *world, _, _ [16]byte) { w.tamper(`DELETE FROM audit_hash WHERE index = 2`) }, []auditlog.What{auditlog.TreeDamaged}},
		"a row and its leaf's hash changed": {func(w *world, first, _ [16]byte) {
			w.tamper(`DELETE FROM access_log WHERE interaction_id = $1::uuid`, text(first))
			w.tamper(`DELETE FROM audit_leaf WHERE id = $1::uuid`, text(first))
		}, []auditlog.What{auditlog.LeafMissing, auditlog.NotRecorded}},
		"the log cut off": {func(w *world, _, _ [16]byte) {
			w.tamper(`DELETE FROM audit_checkpoint`)
			w.tamper(`DELETE FROM audit_hash WHERE index >= 7`)
			w.tamper(`DELETE FROM audit_leaf WHERE index >= 4`)
		}, []auditlog.What{auditlog.LogCut, auditlog.RowUnlogged}},
		"all of the log deleted": {func(w *world, _, _ [16]byte) {
			for _, table := range []string{"audit_checkpoint", "audit_hash", "audit_leaf"} {
				w.tamper(`DELETE FROM ` + table)
			}
		}, []auditlog.What{auditlog.LogCut, auditlog.RowUnlogged}},
		"a checkpoint replaced": {func(w *world, _, _ [16]byte) {
			w.tamper(`UPDATE audit_checkpoint SET note = convert_to(replace(convert_from(note, 'UTF8'), 'kluis.test', 'kluis.evil'), 'UTF8')`)
		}, []auditlog.What{auditlog.BadCheckpoint}},
		"an exported checkpoint replaced": {func(w *world, _, _ [16]byte) {
			files := must(filepath.Glob(filepath.Join(w.dir, "20*", "0*")))(w.t)
			w.check(os.Remove(files[0]))
			w.check(os.WriteFile(files[0], []byte("forged"), 0o644))
		}, []auditlog.What{auditlog.BadCheckpoint}},
		"the newest exported checkpoint deleted": {func(w *world, _, _ [16]byte) {
			files := must(filepath.Glob(filepath.Join(w.dir, "20*", "0*")))(w.t)
			w.check(os.Remove(files[len(files)-1]))
			w.tamper(`DELETE FROM audit_checkpoint WHERE size = (SELECT max(size) FROM audit_checkpoint)`)
			w.tamper(`DELETE FROM audit_leaf WHERE index = (SELECT max(index) FROM audit_leaf)`)
		}, []auditlog.What{auditlog.LogCut, auditlog.RowUnlogged}}, // by the file latest
		"a leaf far beyond the end": {func(w *world, _, _ [16]byte) {
			w.tamper(`INSERT INTO audit_leaf (index, kind, id, number, version) VALUES (1::bigint << 61, 1, gen_random_uuid(), 1, 0)`)
		}, []auditlog.What{auditlog.LeafMissing, auditlog.TreeDamaged}},
	} {
		t.Run(name, func(t *testing.T) {
			defer restore()
			w := *w
			w.t = t
			c.alter(&w, first, second)
			w.finds(c.want...)
		})
	}
}

// TestTamperingWhileItRuns alters what the daemon goes on to log.
func TestTamperingWhileItRuns(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		alter func(w *world, first, second [16]byte)
		want  []auditlog.What
	}{
		"a record inserted, and logged": {func(w *world, _, _ [16]byte) {
			w.refuse(time.Now().Add(-time.Hour))
			_, stop := w.auditing(w.store, w.servers(), w.export)
			defer stop()
			for end := time.Now().Add(20 * time.Second); w.verify().Counts[auditlog.RowUnlogged] > 0 && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
		}, []auditlog.What{auditlog.Backdated}},
		"a record suppressed": {func(w *world, _, _ [16]byte) {
			w.open(newID())
			_, stop := w.auditing(w.store, w.servers(), w.export)
			defer stop()
			for end := time.Now().Add(20 * time.Second); w.verify().Counts[auditlog.NotRecorded] == 0 && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
			w.settled()
		}, []auditlog.What{auditlog.NotRecorded}},
		"a reading put down to an employee": {func(w *world, _, _ [16]byte) {
			id := newID()
			record := w.recordOf(id, w.open(id))
			record.Employee, record.Reason = "https://id.test#kim", "customer on the line"
			w.check(w.gateway.Record(w.t.Context(), record))
			_, stop := w.auditing(w.store, w.servers(), w.export)
			defer stop()
			for end := time.Now().Add(20 * time.Second); w.verify().Counts[auditlog.ReceiptBad] == 0 && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
			w.settled()
		}, []auditlog.What{auditlog.ReceiptBad}},
		"something else opened for a recorded interaction": {func(w *world, first, _ [16]byte) {
			w.blocks = append(w.blocks, w.seal(2, 7, true))[1:]
			w.open(first)
			_, stop := w.auditing(w.store, w.servers(), w.export)
			defer stop()
			for end := time.Now().Add(20 * time.Second); w.verify().Counts[auditlog.Another] == 0 && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
			w.settled()
		}, []auditlog.What{auditlog.Another}},
		"a block rolled back": {func(w *world, _, _ [16]byte) {
			w.seal(2, 8, true)
			w.catchUp()
			w.tamper(`DELETE FROM sealed_block WHERE version = 2`)
		}, []auditlog.What{auditlog.BlockMissing}},
		"a block replaced by its older version": {func(w *world, _, _ [16]byte) {
			w.seal(2, 8, true)
			w.catchUp()
			w.tamper(`UPDATE sealed_block SET ciphertext = (SELECT ciphertext FROM sealed_block WHERE version = 1) WHERE version = 2`)
		}, []auditlog.What{auditlog.BlockChanged}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			first := w.read()
			w.catchUp()
			c.alter(w, first, [16]byte{})
			w.finds(c.want...)
		})
	}
}

// snapshot copies the tables and the exported files, and returns what puts them
// back.
func (w *world) snapshot() func() {
	w.t.Helper()
	tables := []string{"access_log", "journal_entry", "legal_file", "supplier", "sealed_block", "audit_statement", "audit_leaf", "audit_hash", "audit_checkpoint", "audit_cursor"}
	for _, table := range tables {
		w.exec(`CREATE TABLE copy_of_` + table + ` AS TABLE ` + table)
	}
	dir := w.t.TempDir()
	w.check(os.CopyFS(filepath.Join(dir, "copy"), os.DirFS(w.dir)))
	return func() {
		for _, table := range tables {
			w.exec(`DELETE FROM ` + table)
			w.exec(`INSERT INTO ` + table + ` TABLE copy_of_` + table)
		}
		w.check(os.RemoveAll(w.dir))
		w.check(os.CopyFS(w.dir, os.DirFS(filepath.Join(dir, "copy"))))
	}
}

// settled waits until the journals are fetched and all is signed, whatever is
// found.
func (w *world) settled() {
	w.t.Helper()
	times := 0
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		pulled := w.pulled()
		if r := w.verify(); !pulled || r.Counts[auditlog.Unsigned]+r.Counts[auditlog.RowUnlogged]+r.Counts[auditlog.NotYetSettled] > 0 {
			times = 0
		} else if times++; times == 3 {
			return
		}
	}
	w.t.Fatal("the log does not come to rest")
}

// TestRebuilt: two leaves change places, with their hashes and the whole tree
// above them made new: only the checkpoints know.
func TestRebuilt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, second := w.read(), w.read()
	w.catchUp()
	w.tamper(`UPDATE audit_leaf l SET index = 1000000 + o.index FROM audit_leaf o
		WHERE l.id IN ($1::uuid, $2::uuid) AND o.id IN ($1::uuid, $2::uuid) AND l.kind = 1 AND o.kind = 1 AND l.id <> o.id`, text(first), text(second))
	w.tamper(`UPDATE audit_leaf SET index = index - 1000000 WHERE index >= 1000000`)
	w.finds(auditlog.RowChanged)
	w.rebuild()
	w.finds(auditlog.LogForked)
}

// rebuild makes the whole tree new from the rows there are.
func (w *world) rebuild() {
	w.t.Helper()
	leaves := must(w.store.Leaves(w.t.Context(), 0, 1<<40))(w.t)
	w.tamper(`DELETE FROM audit_hash`)
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, err error) {
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for i, l := range leaves {
		row := must(w.store.Rows(w.t.Context(), []leaf.Key{l.Key}))(w.t)[0]
		stored = append(stored, must(tlog.StoredHashesForRecordHash(int64(i), row.Hash(), reader))(w.t)...)
	}
	for i, h := range stored {
		w.tamper(`INSERT INTO audit_hash (index, hash) VALUES ($1, $2)`, i, h[:])
	}
}

// TestForked: somebody who owns the database and may have checkpoints signed
// makes a new log without a record.
func TestForked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.refuse(time.Now())
	w.read()
	w.catchUp()
	w.tamper(`DELETE FROM access_log WHERE receipt = ''`)
	for _, table := range []string{"audit_checkpoint", "audit_hash", "audit_leaf", "audit_cursor"} {
		w.tamper(`DELETE FROM ` + table)
	}

	// The true auditor sees it, and neither logs nor signs.
	_, stop := w.auditing(w.store, w.servers(), w.export)
	time.Sleep(200 * time.Millisecond)
	stop()
	if n := must(w.store.Size(t.Context()))(t); n != 0 {
		t.Errorf("%d leaves logged on another log than was signed", n)
	}
	w.finds(auditlog.LogCut, auditlog.RowUnlogged)

	// One with a folder of its own gets no signature from a server that signed a
	// longer log; after it started again it does.
	forged := must(auditlog.OpenExport(t.TempDir(), w.log))(t)
	_, stop = w.auditing(w.store, w.servers(), forged)
	for end := time.Now().Add(10 * time.Second); must(w.store.Size(t.Context()))(t) < 5 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	w.stop()
	w.startServer()
	var r *auditlog.Report
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		r = must(auditlog.Verify(t.Context(), w.store, auditlog.Options{Log: w.log, Seals: must(authz.NewSealKeys(w.hsm.SealKeys...))(t), Zone: w.profile.Location(), Export: forged}))(t)
		if r.Clean() && r.Exported > 0 {
			break
		}
	}
	stop()
	if !r.Clean() || r.Exported == 0 {
		t.Errorf("what nobody holds another checkpoint of can be forged, and was found all the same: %+v", r.Findings)
	}
	if r := w.verify(); r.Counts[auditlog.LogForked]+r.Counts[auditlog.LogCut] == 0 {
		t.Errorf("with the true checkpoints: %+v", r)
	}
}
