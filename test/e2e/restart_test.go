package e2e

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"kluis/cryptoserver/envelope"
	"kluis/meter"
	"kluis/openapi/client"
)

// A demo that is stopped and started again has its data, its keys and its
// log; `--once` makes one request and stops; a second demo is kept out.
func TestDemoResumes(t *testing.T) {
	t.Parallel()
	w := privateWorld(t)
	today := meter.DayOf(time.Now(), w.profile(t).Location())
	p := w.ready.MeteringPoints[0]
	_, first := w.chain(t)
	asked := 0 // by the demo's own suppliers, before it was ready
	for _, n := range first {
		asked += n
	}
	ask := func() client.Readings {
		c := w.supplier(t, 0)
		r := c.read(t, p.EAN, (today - 30).String(), today.String(), "ENERGY_MANAGEMENT")
		w.checkRecord(t, c, r)
		return r
	}
	before := ask()
	count := func() (n int) {
		if err := w.db.QueryRow(`SELECT (SELECT count(*) FROM sealed_block) + (SELECT count(*) FROM data_key) + (SELECT count(*) FROM legal_file) + (SELECT count(*) FROM supplier)`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	stored := count()
	urls := []string{w.ready.GatewayURL, w.ready.IssuerURL, w.ready.MetricsURL}

	second := exec.CommandContext(t.Context(), filepath.Join(w.bin, "kluis"), "demo", "--state", w.state)
	second.Env = w.env()
	if out, err := second.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("another demo runs in")) {
		t.Errorf("a second demo in the same folder: %v\n%s", err, out)
	}

	if err := w.stopDemo(); err != nil {
		t.Fatal(err)
	}
	if left := processesOf(w.state); len(left) > 0 {
		t.Fatalf("the demo leaves processes behind: %v", left)
	}

	once := exec.CommandContext(t.Context(), filepath.Join(w.bin, "kluis"), "demo", "--state", w.state, "--once")
	once.Env = w.env()
	var stdout, stderr bytes.Buffer
	once.Stdout, once.Stderr = &stdout, &stderr
	if err := once.Run(); err != nil {
		t.Fatalf("--once: %v\n%s", err, stderr.Bytes())
	}
	var printed client.Readings
	if err := json.Unmarshal(stdout.Bytes(), &printed); err != nil || len(printed.Series) == 0 || printed.Ean != p.EAN {
		t.Errorf("--once printed %v\n%s", err, stdout.Bytes())
	}
	if left := processesOf(w.state); len(left) > 0 {
		t.Fatalf("--once leaves processes behind: %v", left)
	}

	if err := w.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := []string{w.ready.GatewayURL, w.ready.IssuerURL, w.ready.MetricsURL}; got[0] != urls[0] || got[1] != urls[1] || got[2] != urls[2] {
		t.Logf("other addresses than before: %v, %v", urls, got) // somebody took a port meanwhile
	}
	if n := count(); n != stored {
		t.Errorf("%d rows of readings, keys and facts, %d before", n, stored)
	}
	after := ask()
	before.InteractionId = after.InteractionId
	x, _ := json.Marshal(before)
	y, _ := json.Marshal(after)
	if !bytes.Equal(x, y) {
		t.Error("another answer than before the restart")
	}
	w.onlyRow(t, printed.InteractionId.String()) // the log is kept, too

	// Nobody but this test asked this demo since: the receipts in the log are those
	// in the journals of the boots there were, no more and no less.
	_, boots := w.chain(t)
	receipts := 0
	for boot, n := range boots {
		receipts += n
		eventuallyWithin(t, time.Minute, "the auditor has fetched the journal with each receipt of the log", func() bool {
			return w.journaled(t, boot) == n
		})
	}
	if receipts != asked+3 || len(boots) < 3 {
		t.Errorf("%d receipts of %d boots, and the demo's own were %d", receipts, len(boots), asked)
	}
}

// journaled follows the journal of a boot, as far as the auditor has it, from its
// first entry, and counts the receipts in it. Other entries are between them: what was
// sealed, and the heads of the control feed that were signed.
func (w *world) journaled(t testing.TB, boot [16]byte) (receipts int) {
	t.Helper()
	var entries [][]byte
	if err := w.db.QueryRow(`SELECT array_agg(entry ORDER BY sequence) FROM journal_entry WHERE boot_id = $1`, uuid.UUID(boot)).Scan(pq.Array(&entries)); err != nil {
		t.Fatal(err)
	}
	chain := envelope.Chain{BootID: boot}
	for _, b := range entries {
		e, err := envelope.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		if chain.ServerID == "" {
			chain.ServerID = e.Link().ServerID
		}
		if e, err = chain.Next(b); err != nil {
			t.Fatal(err)
		}
		if e.Receipt != nil {
			receipts++
		}
	}
	return receipts
}
