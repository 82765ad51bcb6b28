package auditlog_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"kluis/auditlog"
	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/migrations"
)

var records = flag.Int("records", 0, "access records of TestVerifyMany, half of them with a receipt in a journal; 0: not run")

// TestVerifyMany measures: verifying a log is linear in its length, and takes no
// more memory when it is longer.
//
//	go test ./auditlog -run TestVerifyMany -v -timeout 0 -records 1000000
func TestVerifyMany(t *testing.T) {
	if *records == 0 {
		t.Skip("say how many: -records 1000000")
	}
	w := newWorld(t)
	w.catchUp()
	chain := envelope.Chain{ServerID: "cs9", BootID: newID()}
	gln := w.gln
	began := time.Now()
	// So many homes that what was verified is not found in a cache.
	const homes = 5000
	files := make([]fileOf, homes)
	registrar := w.as("registrar")
	for i := range files {
		ean := must(meter.ParseEAN(checked(fmt.Sprintf("87168714%09d", i+10))))(t)
		sealed := must(registrar.SealStep(t.Context(), nil, authz.Register{EAN: ean, Commodity: meter.Electricity}))(t)
		w.exec(`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, 1, $2, now())`, ean.Int64(), sealed)
		files[i] = fileOf{ean, must(must(authz.NewSealKeys(w.hsm.SealKeys...))(t).LegalFile(sealed))(t).Digest()}
	}
	w.catchUp()
	t.Logf("%d homes made in %s", homes, time.Since(began).Round(time.Second))
	began = time.Now()
	for done := 0; done < *records; {
		const page = 5000
		var eans, glns, outcomes []int64
		var ids []string
		var recs, receipts, salts, entries [][]byte
		var sequences []int64
		for range min(page, *records-done) {
			id, file := newID(), files[done*7919%homes]
			ean := file.ean
			r := audit.Record{InteractionID: id, At: time.Now(), Operation: audit.Readings, Supplier: gln, EAN: ean, Purpose: meter.Billing, Days: w.days, Outcome: audit.NoRelation}
			if done%2 == 0 {
				rc := envelope.Receipt{ServerID: chain.ServerID, BootID: chain.BootID, Sequence: chain.Sequence + 1, Previous: chain.Hash, At: time.Now(), InteractionID: id,
					Supplier: gln, EAN: ean, Purpose: meter.Billing, LegalFile: file.digest, FileVersion: 1, Opened: 31}
				raw := rc.Encode()
				if _, err := chain.Next(raw); err != nil {
					t.Fatal(err)
				}
				r = w.recordOf(id, raw)
				r.EAN = ean
				entries, sequences = append(entries, raw), append(sequences, int64(rc.Sequence))
			}
			eans, glns, outcomes = append(eans, ean.Int64()), append(glns, gln.Int64()), append(outcomes, int64(r.Outcome))
			ids, recs, receipts = append(ids, text(id)), append(recs, must(r.Encode())(t)), append(receipts, append([]byte{}, r.Receipt...))
			salt := newID()
			salts = append(salts, salt[:])
			done++
		}
		w.tamper(`INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt)
			SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::smallint[], $5::bytea[], $6::bytea[], $7::bytea[])`,
			pq.Array(eans), pq.Array(ids), pq.Array(glns), pq.Array(outcomes), pq.Array(recs), pq.Array(receipts), pq.Array(salts))
		w.tamper(`INSERT INTO journal_entry (boot_id, sequence, entry) SELECT $1::uuid, * FROM unnest($2::bigint[], $3::bytea[])`,
			text(chain.BootID), pq.Array(sequences), pq.Array(entries))
	}
	t.Logf("%d records and %d journal entries made in %s", *records, chain.Sequence, time.Since(began).Round(time.Second))

	began = time.Now()
	timing := fast
	timing.Call = time.Minute
	a := must(auditlog.New(w.store, w.servers(), w.export, w.log, slog.New(slog.NewTextHandler(io.Discard, nil)), w.rules(), timing))(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	want := int64(*records) + int64(chain.Sequence)
	for must(w.store.Size(t.Context()))(t) < want || must(w.store.LastCheckpoint(t.Context()))(t).Size < want {
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("logged and signed in %s", time.Since(began).Round(time.Second))
	stop()
	w.check(<-ended)
	for _, table := range []string{"access_log", "journal_entry", "audit_leaf", "audit_hash"} {
		w.exec("ANALYZE " + table)
	}

	store := must(postgres.NewAuditor(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleAuditor), StatementTimeout: time.Minute}))(t)
	var peak atomic.Uint64
	measured, done := make(chan struct{}), make(chan struct{})
	runtime.GC()
	go func() {
		defer close(done)
		for {
			select {
			case <-measured:
				return
			case <-time.After(50 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapAlloc))
			}
		}
	}()
	began = time.Now()
	tenths, last := int64(0), ""
	r := must(auditlog.Verify(t.Context(), store, auditlog.Options{Log: w.log, Seals: must(authz.NewSealKeys(w.hsm.SealKeys...))(t), Zone: w.profile.Location(), Export: w.export,
		Progress: func(part string, n, total int64) {
			if part != last {
				t.Logf("%s, after %s", part, time.Since(began).Round(10*time.Millisecond))
				last = part
			}
			if part == "log" && total > 0 && n*10/total > tenths {
				tenths = n * 10 / total
				t.Logf("log %3d %%: %s, heap %s", tenths*10, time.Since(began).Round(10*time.Millisecond), megabytes(peak.Load()))
			}
		}}))(t)
	took := time.Since(began)
	close(measured)
	<-done
	t.Logf("verified %d leaves (%d records, %d entries) in %s: %.0f leaves/s, heap at most %s", r.Size, r.Records, r.Entries, took.Round(10*time.Millisecond),
		float64(r.Size)/took.Seconds(), megabytes(peak.Load()))
	if !r.Clean() || r.Records < int64(*records) {
		t.Errorf("%+v", r)
	}
	if peak.Load() > 256<<20 {
		t.Errorf("verifying took %s of heap", megabytes(peak.Load()))
	}
	w.check(store.Close())
}

type fileOf struct {
	ean    meter.EAN
	digest [32]byte
}

// checked gives 17 digits their check digit (GS1).
func checked(digits string) string {
	sum := 0
	for i, c := range digits {
		sum += int(c-'0') * (3 - 2*(i%2))
	}
	return digits + string(rune('0'+(10-sum%10)%10))
}

func megabytes(n uint64) string { return fmt.Sprintf("%.0f MB", float64(n)/(1<<20)) }
