package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/devpki"
	"kluis/meter"
)

// These tests have the superuser's run of the database. Whatever is done
// there, an answer holds right values or none.

// Fields of the catalogue, as the database has them.
const (
	importLow       = 1
	importNormal    = 2
	importIntervals = 6
)

const damagedBlocks = `^kluis_gateway_block_faults_total\{fault="damaged"\}`

// intact wants everything of a home.
func (h *home) intact(t testing.TB) {
	t.Helper()
	s := seenIn(t, h.of.fetch(t, h.path()))
	s.want(t, h.corrected, nil)
	if row := h.l.onlyRow(t, s.id); row.Outcome != audit.Given || row.receipt == nil || row.receipt.Opened != uint32(len(h.corrected)) || row.receipt.Damaged != 0 {
		t.Errorf("recorded as %s with %+v", row.Outcome, row.receipt)
	}
}

// damaged wants everything of a home but the blocks of keys, which are said to
// be damaged in the answer, the receipt, the access log and the metrics.
func (h *home) damaged(t testing.TB, keys ...string) {
	t.Helper()
	before := scrape(t, h.l.ready.MetricsURL).sum(damagedBlocks)
	s := seenIn(t, h.of.fetch(t, h.path()))
	s.want(t, gaps(h.corrected, keys...), runs(t, "DAMAGED", keys...))
	if after := scrape(t, h.l.ready.MetricsURL).sum(damagedBlocks); after < before+float64(len(keys)) {
		t.Errorf("the metric rose from %v to %v, for %d damaged blocks", before, after, len(keys))
	}
	row := h.l.onlyRow(t, s.id)
	var recorded []string
	for _, w := range row.Withheld {
		if f, _ := h.l.profile.FieldByCode(w.Field); w.Reason == meter.Damaged {
			for d := w.Days.From; d < w.Days.To; d++ {
				recorded = append(recorded, dayKey(f.Name, d))
			}
		}
	}
	slices.Sort(recorded)
	if want := slices.Sorted(slices.Values(keys)); row.Outcome != audit.Partly || !slices.Equal(recorded, want) {
		t.Errorf("recorded as %s, damaged %q; want %q", row.Outcome, recorded, want)
	}
	if row.receipt == nil || int(row.receipt.Damaged) != len(keys) || int(row.receipt.Opened) != len(h.corrected)-len(keys) || row.receipt.Refused != 0 {
		t.Errorf("receipt %+v, for %d damaged blocks", row.receipt, len(keys))
	}
}

func TestTamperedBlocks(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v := l.vendor(t)
	h, n := l.home(t, v), l.home(t, v)
	restore := l.keep(t, "ean", h.ean.Int64(), "data_key", "sealed_block")
	h.intact(t)
	n.intact(t)

	ean, other := h.ean.Int64(), n.ean.Int64()
	const (
		where = ` WHERE ean = $1 AND field = $2 AND day = $3`
		block = `(SELECT ciphertext FROM sealed_block WHERE ean = $4 AND field = $5 AND day = $6 ORDER BY version DESC LIMIT 1)`
	)
	day := func(d meter.Day) string { return d.String() }
	turn := h.turn
	replace := func(field int, d meter.Day, fromEAN int64, fromField int, from meter.Day) func(t *testing.T) {
		return func(t *testing.T) {
			l.sql(t, 1, `UPDATE sealed_block SET ciphertext = `+block+where, ean, field, day(d), fromEAN, fromField, day(from))
		}
	}
	set := func(what string, field int, d meter.Day) func(t *testing.T) {
		return func(t *testing.T) {
			l.sql(t, 1, `UPDATE sealed_block SET `+what+where, ean, field, day(d))
		}
	}
	flip := func(at string) string {
		return fmt.Sprintf(`ciphertext = set_byte(ciphertext, %s, get_byte(ciphertext, %[1]s) # 1)`, at)
	}
	low, quarters := dayKey("import_low", turn), dayKey("import_intervals", turn)
	corrected := dayKey("import_intervals", turn+1)

	type tampering struct {
		name   string
		tamper func(t *testing.T)
		hurt   []string
	}
	cases := []tampering{
		{"of another metering point", replace(importIntervals, turn, other, importIntervals, turn), []string{quarters}},
		{"of another field", replace(importLow, turn, ean, importNormal, turn), []string{low}},
		{"of another class", replace(importLow, turn, ean, importIntervals, turn), []string{low}},
		{"of another day", replace(importIntervals, turn, ean, importIntervals, turn+2), []string{quarters}},
		{"of a day in another month", replace(importIntervals, turn, ean, importIntervals, turn-1), []string{quarters}},
		{"two days exchanged", func(t *testing.T) {
			l.sql(t, 1, `UPDATE sealed_block SET day = '2999-01-01'`+where, ean, importLow, day(turn))
			l.sql(t, 1, `UPDATE sealed_block SET day = $4`+where, ean, importLow, day(turn+1), day(turn))
			l.sql(t, 1, `UPDATE sealed_block SET day = $4`+where, ean, importLow, "2999-01-01", day(turn+1))
		}, []string{low, dayKey("import_low", turn+1)}},
		{"another version number", set(`version = 2`, importIntervals, turn), []string{quarters}},
		{"an old version on top", func(t *testing.T) {
			l.sql(t, 1, `INSERT INTO sealed_block (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext)
				SELECT ean, field, day, 3, resolution, key_id, value_count, content_mac, ciphertext FROM sealed_block`+where+` AND version = 1`,
				ean, importIntervals, day(turn+1))
		}, []string{corrected}},
		{"two versions exchanged", func(t *testing.T) {
			l.sql(t, 1, `UPDATE sealed_block SET version = 9`+where+` AND version = 1`, ean, importIntervals, day(turn+1))
		}, []string{corrected}},
		{"magic", set(flip("0"), importLow, turn), []string{low}},
		{"format version", set(flip("2"), importLow, turn), []string{low}},
		{"suite", set(flip("3"), importLow, turn), []string{low}},
		{"key id inside", set(flip("11"), importLow, turn), []string{low}},
		{"length of the IV", set(flip("20"), importLow, turn), []string{low}},
		{"IV", set(flip("21"), importLow, turn), []string{low}},
		{"body", set(flip("33"), importLow, turn), []string{low}},
		{"body of many values", set(flip("octet_length(ciphertext) / 2"), importIntervals, turn), []string{quarters}},
		{"tag", set(flip("octet_length(ciphertext) - 1"), importLow, turn), []string{low}},
		{"first byte of the tag", set(flip("octet_length(ciphertext) - 16"), importLow, turn), []string{low}},
		{"one byte cut off", set(`ciphertext = substr(ciphertext, 1, octet_length(ciphertext) - 1)`, importLow, turn), []string{low}},
		{"cut off in the head", set(`ciphertext = substr(ciphertext, 1, 7)`, importLow, turn), []string{low}},
		{"one byte more", set(`ciphertext = ciphertext || '\x00'`, importLow, turn), []string{low}},
		{"resolution", set(`resolution = 2`, importIntervals, turn), []string{quarters}},
		{"impossible resolution", set(`resolution = 7`, importIntervals, turn), []string{quarters}},
		{"key id beside", set(`key_id = (SELECT key_id FROM data_key k WHERE k.ean = $1 AND class = 2 LIMIT 1)`, importLow, turn), []string{low}},
		{"key id of nothing", set(`key_id = gen_random_uuid()`, importLow, turn), []string{low}},
		{"key of another metering point", set(fmt.Sprintf(`key_id = (SELECT key_id FROM data_key WHERE ean = %d LIMIT 1)`, other), importLow, turn), []string{low}},
		{"block and data key of another metering point", func(t *testing.T) {
			l.sql(t, 1, `DELETE FROM data_key WHERE ean = $1 AND class = 2 AND month = $2`, ean, int(turn.Month()))
			l.sql(t, 1, `INSERT INTO data_key (ean, key_id, class, month, occupancy, kek_epoch, wrapped, mac)
				SELECT $1, key_id, class, month, occupancy, kek_epoch, wrapped, mac FROM data_key WHERE ean = $2 AND class = 2 AND month = $3`, ean, other, int(turn.Month()))
			l.sql(t, 1, `UPDATE sealed_block SET (key_id, ciphertext) = (SELECT key_id, ciphertext FROM sealed_block WHERE ean = $4 AND field = $2 AND day = $3)`+where,
				ean, importIntervals, day(turn), other)
		}, h.under(meter.Intervals, turn.Month())},
		// What is not read is not missed.
		{"count and content MAC", set(`value_count = 3, content_mac = decode(repeat('ab', 32), 'hex'), sealed_at = '2001-01-01'`, importIntervals, turn), nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			defer restore()
			c.tamper(t)
			if len(c.hurt) == 0 {
				h.intact(t)
			} else {
				h.damaged(t, c.hurt...)
			}
		})
	}

	t.Run("deleted", func(t *testing.T) {
		defer restore()
		l.sql(t, 1, `DELETE FROM sealed_block`+where, ean, importLow, day(turn))
		s := seenIn(t, h.of.fetch(t, h.path()))
		s.want(t, gaps(h.corrected, low), nil)
		if row := l.onlyRow(t, s.id); int(row.receipt.Opened) != len(h.corrected)-1 {
			t.Errorf("receipt %+v", row.receipt)
		}
	})
	// A superuser can put an older value back by deleting the newer one: this
	// is what docs/THREAT-MODEL.md says remains. The receipt has the version.
	t.Run("correction deleted", func(t *testing.T) {
		defer restore()
		l.sql(t, 1, `DELETE FROM sealed_block`+where+` AND version = 2`, ean, importIntervals, day(turn+1))
		want := maps.Clone(h.corrected)
		want[corrected] = h.old[corrected]
		seenIn(t, h.of.fetch(t, h.path())).want(t, want, nil)
	})
	t.Run("all deleted", func(t *testing.T) {
		defer restore()
		l.sql(t, int64(len(h.corrected))+1, `DELETE FROM sealed_block WHERE ean = $1`, ean)
		s := seenIn(t, h.of.fetch(t, h.path()))
		for k, v := range s.values {
			if strings.Trim(v, "nul ") != "" {
				t.Errorf("%s: %s", k, v)
			}
		}
		if len(s.withheld) != 0 {
			t.Errorf("withheld %q", s.withheld)
		}
	})
	h.intact(t)
	n.intact(t)
}

func TestTamperedDataKeys(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v := l.vendor(t)
	h, n := l.home(t, v), l.home(t, v)
	restore := l.keep(t, "ean", h.ean.Int64(), "data_key", "sealed_block")
	h.intact(t)
	ean, month := h.ean.Int64(), int(h.turn.Month())
	mine := h.under(meter.Intervals, h.turn.Month())
	const key = ` WHERE ean = $1 AND class = 2 AND month = $2`
	wrapped := func(ean int64, class int, month int) string {
		return fmt.Sprintf(`(SELECT wrapped FROM data_key WHERE ean = %d AND class = %d AND month = %d)`, ean, class, month)
	}
	// A file with one more quarter-hour, to be sealed under the data key that
	// was altered.
	mapping := writeTemp(t, "m.yaml", "time: {columns: [T], format: RFC3339, marks: start}\nevery: PT15M\n"+
		"fields:\n  - {field: import_intervals, reads: consumption, columns: [V], unit: kWh}\n")
	spare := h.last + 3 // a day of the same month without readings
	file := writeTemp(t, "f.csv", "T,V\n"+spare.Start(l.profile.Location()).Format(time.RFC3339)+",0.125\n")
	args := []string{"ingest", "csv", "--mapping", mapping, "--ean", h.ean.String(), file}

	for _, c := range []struct {
		name, set string
		hurt      []string
		ingest    string // the complaint; "" when it does not use this key
	}{
		{"wrapped: of another metering point", `wrapped = ` + wrapped(n.ean.Int64(), 2, month), mine, "MAC does not verify"},
		{"wrapped: of another month", `wrapped = ` + wrapped(ean, 2, month-1), mine, "MAC does not verify"},
		{"wrapped: of another class", `wrapped = ` + wrapped(ean, 1, month), mine, "MAC does not verify"},
		{"wrapped: a bit", `wrapped = set_byte(wrapped, 20, get_byte(wrapped, 20) # 1)`, mine, "MAC does not verify"},
		{"wrapped: cut off", `wrapped = substr(wrapped, 1, 39)`, mine, "not a key record"},
		{"id", `key_id = gen_random_uuid()`, mine, "MAC does not verify"},
		{"class", `class = 9`, mine, ""},
		{"month", `month = month + 1200`, mine, ""},
		{"MAC: not looked at by a read", `mac = set_byte(mac, 31, get_byte(mac, 31) # 1)`, nil, "MAC does not verify"},
		{"occupancy: not looked at by a read", `occupancy = occupancy - 1`, nil, ""},
		{"created: of no meaning", `created_at = '2001-01-01'`, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer restore()
			l.sql(t, 1, `UPDATE data_key SET `+c.set+key, ean, month)
			if len(c.hurt) == 0 {
				h.intact(t)
			} else {
				h.damaged(t, c.hurt...)
			}
			before := one[int](t, l.world, `SELECT count(*) FROM sealed_block WHERE ean = $1`, ean)
			if c.ingest == "" {
				l.kluis(t, args...)
				before++
			} else if complaint := l.kluisFails(t, 1, args...); !strings.Contains(complaint, c.ingest) {
				t.Errorf("ingest: %s", complaint)
			}
			if after := one[int](t, l.world, `SELECT count(*) FROM sealed_block WHERE ean = $1`, ean); after != before {
				t.Errorf("%d blocks, want %d", after, before)
			}
		})
	}
	t.Run("KEK epoch", func(t *testing.T) {
		defer restore()
		l.sql(t, 1, `UPDATE data_key SET kek_epoch = 2`+key, ean, month)
		h.damaged(t, mine...) // later than the active one: none was ever wrapped under it
		n.intact(t)           // no harm to others
		if complaint := l.kluisFails(t, 1, args...); !strings.Contains(complaint, "MAC does not verify") {
			t.Errorf("ingest: %s", complaint)
		}
	})
	t.Run("deleted", func(t *testing.T) {
		defer restore()
		l.sql(t, 1, `DELETE FROM data_key`+key, ean, month)
		h.damaged(t, mine...)
	})
	h.intact(t)
	l.kluis(t, args...)
	h.intact(t)
}

// forger signs as a seal key would, with a key that nobody pinned.
type forger struct {
	key *ecdsa.PrivateKey
	id  authz.KeyID
}

func newForger(t testing.TB) forger {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return forger{k, authz.KeyIDOf(&k.PublicKey)}
}

func (f forger) KeyID() authz.KeyID { return f.id }

func (f forger) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, s, err := ecdsa.Sign(rand.Reader, f.key, digest[:])
	if err != nil {
		return sig, err
	}
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig, nil
}

// forge seals a payload with a key that nobody pinned, under its own id and
// under that of the key that signed genuine.
func forge(t testing.TB, payload, genuine []byte) map[string][]byte {
	t.Helper()
	f := newForger(t)
	out := map[string][]byte{}
	for name, id := range map[string]authz.KeyID{"under its own id": f.id, "under a pinned key's id": sealKeyOf(t, genuine)} {
		f.id = id
		b, err := authz.Seal(payload, f)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = b
	}
	return out
}

// sealKeyOf finds the key id of a sealed fact: it follows the envelope's head,
// which is that of any other.
func sealKeyOf(t testing.TB, sealed []byte) (id authz.KeyID) {
	t.Helper()
	probe := newForger(t)
	s, err := authz.NewSupplier(nil, authz.SupplierFacts{GLN: sure(meter.ParseGLN(labGLN())), Name: "probe", Scopes: []string{"readings:read"}}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b, err := authz.Seal(s.Payload(), probe)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), string(probe.id[:]))
	if at < 0 || len(sealed) < at+len(id) {
		t.Fatal("no key id in a sealed fact")
	}
	copy(id[:], sealed[at:])
	return id
}

const evidenceInvalid = `^kluis_gateway_evidence_invalid_total\{kind="%s"\}`

// invalid wants the whole answer refused for its evidence, and the record of
// that.
func (h *home) invalid(t testing.TB) {
	t.Helper()
	metric := fmt.Sprintf(evidenceInvalid, "legal_file")
	before := scrape(t, h.l.ready.MetricsURL).sum(metric)
	a := h.of.fetch(t, h.path())
	a.problem(t, http.StatusInternalServerError, "evidence-invalid")
	if after := scrape(t, h.l.ready.MetricsURL).sum(metric); after <= before {
		t.Errorf("the metric stays at %v", after)
	}
	if row := h.l.onlyRow(t, a.InteractionId.String()); row.Outcome != audit.Failed || row.receipt != nil || len(row.Granted) != 0 {
		t.Errorf("recorded as %+v", row)
	}
}

// listed are the metering points of a caller's list.
func (c *caller) listed(t testing.TB) []string {
	t.Helper()
	a := c.fetch(t, "/v1/metering-points?limit=1000")
	var page struct {
		MeteringPoints []struct{ EAN string }
	}
	if a.status != http.StatusOK {
		t.Fatalf("%d: %s", a.status, a.body)
	}
	if err := json.Unmarshal(a.body, &page); err != nil {
		t.Fatal(err)
	}
	var eans []string
	for _, p := range page.MeteringPoints {
		eans = append(eans, p.EAN)
	}
	return eans
}

func TestTamperedLegalFiles(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v := l.vendor(t)
	h, n := l.home(t, v), l.home(t, v)
	ean := h.ean.Int64()
	restore := l.keep(t, "ean", ean, "legal_file", "supply_period", "consent")
	h.intact(t)
	wantList := func(t *testing.T, homes ...*home) {
		t.Helper()
		want := []string{}
		for _, h := range homes {
			want = append(want, h.ean.String())
		}
		slices.Sort(want)
		if got := v.listed(t); !slices.Equal(got, want) {
			t.Errorf("the list has %q, want %q", got, want)
		}
	}
	wantList(t, h, n)

	const newest = ` WHERE ean = $1 AND version = (SELECT max(version) FROM legal_file WHERE ean = $1)`
	genuine := one[[]byte](t, l.world, `SELECT file FROM legal_file`+newest, ean)
	for _, at := range []int{0, 5, 20, len(genuine) / 2, len(genuine) - 64, len(genuine) - 1} {
		t.Run(fmt.Sprintf("byte %d of %d", at, len(genuine)), func(t *testing.T) {
			defer restore()
			l.sql(t, 1, `UPDATE legal_file SET file = set_byte(file, $2::int, get_byte(file, $2::int) # 1)`+newest, ean, at)
			h.invalid(t)
			wantList(t, n)
		})
	}
	for name, set := range map[string]string{
		"cut off":                         `file = substr(file, 1, octet_length(file) - 1)`,
		"longer":                          `file = file || '\x00'`,
		"of another metering point":       fmt.Sprintf(`file = (SELECT file FROM legal_file WHERE ean = %d ORDER BY version DESC LIMIT 1)`, n.ean.Int64()),
		"a supplier record":               `file = (SELECT record FROM supplier LIMIT 1)`,
		"a payload without its signature": `file = substr(file, 20, octet_length(file) - 84)`,
	} {
		t.Run(name, func(t *testing.T) {
			defer restore()
			l.sql(t, 1, `UPDATE legal_file SET `+set+newest, ean)
			h.invalid(t)
			wantList(t, n)
		})
	}

	// A stranger who writes himself into a file.
	stranger := l.vendor(t)
	keys := sure(sealKeysOf(l))
	file := sure(keys.LegalFile(genuine))
	invented := sure(authz.Apply(file, authz.SetSupply{Supplier: stranger.gln, Days: meter.DayRange{From: h.turn - 50, To: meter.MaxDay}}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now(), l.profile.Location()))
	for name, sealed := range forge(t, invented.Payload(), genuine) {
		t.Run("invented "+name, func(t *testing.T) {
			defer restore()
			l.sql(t, 1, `INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, now())`, ean, int64(invented.Version()), sealed)
			l.sql(t, 1, `INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2020-01-01')`, ean, stranger.gln.Int64())
			stranger.fetch(t, h.path()).problem(t, http.StatusInternalServerError, "evidence-invalid")
			if got := stranger.listed(t); len(got) != 0 {
				t.Errorf("the stranger's list has %q", got)
			}
			h.invalid(t)
			l.kluisFails(t, 1, "supply", "show", "--ean", h.ean.String())
		})
	}
	for name, sealed := range forge(t, file.Payload(), genuine) {
		t.Run("signed by another key "+name, func(t *testing.T) {
			defer restore()
			l.sql(t, 1, `UPDATE legal_file SET file = $2`+newest, ean, sealed)
			h.invalid(t)
		})
	}
	t.Run("the other signature of the same key", func(t *testing.T) {
		defer restore()
		twin := slices.Clone(genuine)
		s := twin[len(twin)-32:]
		new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(s)).FillBytes(s)
		l.sql(t, 1, `UPDATE legal_file SET file = $2`+newest, ean, twin)
		h.invalid(t)
	})
	t.Run("all versions deleted", func(t *testing.T) {
		defer restore()
		l.sql(t, int64(file.Version()), `DELETE FROM legal_file WHERE ean = $1`, ean)
		a := h.of.fetch(t, h.path())
		a.problem(t, http.StatusNotFound, "metering-point-not-found")
		if row := l.onlyRow(t, a.InteractionId.String()); row.Outcome != audit.NoRelation {
			t.Errorf("recorded as %s", row.Outcome)
		}
		wantList(t, n)
	})
	t.Run("older versions deleted", func(t *testing.T) {
		defer restore()
		before := int64(file.Version()) - 1
		l.sql(t, before-1, `DELETE FROM legal_file WHERE ean = $1 AND version < $2`, ean, before)
		h.intact(t)
		// Without the one before, nobody sees what the newest follows on.
		l.sql(t, 1, `DELETE FROM legal_file WHERE ean = $1 AND version = $2`, ean, before)
		h.invalid(t)
	})

	// The indexes only propose.
	t.Run("supply and consent added to the indexes", func(t *testing.T) {
		defer restore()
		l.sql(t, 1, `INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2020-01-01')`, ean, stranger.gln.Int64())
		l.sql(t, 1, `INSERT INTO consent (ean, consent_id, gln, state, from_day, valid_until) VALUES ($1, gen_random_uuid(), $2, 2, '2020-01-01', '2999-01-01')`,
			ean, stranger.gln.Int64())
		if got := stranger.listed(t); len(got) != 0 {
			t.Errorf("the stranger's list has %q", got)
		}
		foreign := stranger.fetch(t, h.path())
		foreign.problem(t, http.StatusNotFound, "metering-point-not-found")
		if row := l.onlyRow(t, foreign.InteractionId.String()); row.Outcome != audit.NoRelation || row.receipt != nil {
			t.Errorf("recorded as %s", row.Outcome)
		}
		h.intact(t)
	})
	t.Run("no metering point in the indexes", func(t *testing.T) {
		defer l.sql(t, 3, `DELETE FROM supply_period WHERE gln = $1`, stranger.gln.Int64())
		for _, impossible := range []int64{0, -1, 123456789012345678} {
			l.sql(t, 1, `INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2020-01-01')`, impossible, stranger.gln.Int64())
		}
		if got := stranger.listed(t); len(got) != 0 {
			t.Errorf("the stranger's list has %q", got)
		}
	})
	t.Run("indexes deleted", func(t *testing.T) {
		defer restore()
		l.sql(t, 1, `DELETE FROM supply_period WHERE ean = $1`, ean)
		l.sql(t, 1, `DELETE FROM consent WHERE ean = $1`, ean)
		wantList(t, n)
		h.intact(t)
	})
	h.intact(t)
}

func sealKeysOf(l *lab) (*authz.SealKeys, error) {
	text, err := os.ReadFile(l.operator.SealKeysFile)
	if err != nil {
		return nil, err
	}
	return authz.ParseSealKeys(text)
}

// An old, genuine version put on top: after a minute of grace no cryptoserver
// that was shown the newer one opens anything by it.
func TestReplayedFacts(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v := l.vendor(t)
	h, n := l.home(t, v), l.home(t, v)
	h.intact(t)

	// The customer revokes the consent; the supplier's second certificate is
	// revoked as well.
	h.step(t, authz.RevokeConsent{ID: h.consent})
	second := l.pair(t, devpki.Leaf{CommonName: "second"})
	registered := func(revoked bool) {
		t.Helper()
		_, err := l.reg.ChangeSupplier(t.Context(), v.gln, func(s *authz.Supplier) (authz.SupplierFacts, error) {
			c := certificateOf(second)
			if revoked {
				c.RevokedAt = time.Now()
			}
			return authz.SupplierFacts{GLN: v.gln, Name: s.Name(), Scopes: s.Scopes(), Certificates: []authz.Certificate{certificateOf(v.cert), c}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	registered(false)
	stolen := l.caller(t, v.clientID, &second)
	seenIn(t, stolen.fetch(t, n.path())).want(t, n.corrected, nil)
	registered(true)
	stolen.fetch(t, n.path()).problem(t, http.StatusUnauthorized, "unauthenticated")

	revoked := []string{fmt.Sprint("import_intervals ", h.first, " ", h.last, " CONSENT_REVOKED")}
	registers := maps.Clone(h.corrected)
	maps.DeleteFunc(registers, func(k, _ string) bool { return strings.HasPrefix(k, "import_intervals") })
	// Both cryptoservers are shown the new versions.
	shown := map[string]bool{}
	within(t, 10*time.Second, "both cryptoservers are shown the new version", func() bool {
		s := seenIn(t, v.fetch(t, h.path()))
		s.want(t, registers, revoked)
		shown[l.onlyRow(t, s.id).receipt.ServerID] = true
		return len(shown) == 2
	})
	since := time.Now()
	shown = map[string]bool{}
	within(t, 10*time.Second, "both cryptoservers are shown the new record", func() bool {
		s := seenIn(t, v.fetch(t, n.path()))
		shown[l.onlyRow(t, s.id).receipt.ServerID] = true
		return len(shown) == 2
	})

	l.sql(t, 1, `INSERT INTO legal_file (ean, version, file, sealed_at)
		SELECT ean, version + 2, file, now() FROM legal_file WHERE ean = $1 ORDER BY version DESC OFFSET 1 LIMIT 1`, h.ean.Int64())
	// Within the minute, it serves: docs/THREAT-MODEL.md says so.
	time.Sleep(time.Until(since.Add(62 * time.Second)))
	for range 4 {
		a := v.fetch(t, h.path())
		a.problem(t, http.StatusInternalServerError, "evidence-invalid")
		if row := l.onlyRow(t, a.InteractionId.String()); row.Outcome != audit.Failed || row.receipt != nil {
			t.Errorf("recorded as %s", row.Outcome)
		}
	}
	seenIn(t, v.fetch(t, n.path())).want(t, n.corrected, nil)

	l.sql(t, 1, `INSERT INTO supplier (gln, version, record, sealed_at)
		SELECT gln, version + 2, record, now() FROM supplier WHERE gln = $1 ORDER BY version DESC OFFSET 1 LIMIT 1`, v.gln.Int64())
	for range 4 {
		stolen.fetch(t, n.path()).problem(t, http.StatusUnauthorized, "unauthenticated")
	}
	if a, err := stolen.askIssuer(t.Context(), url.Values{"grant_type": {"client_credentials"}, "client_id": {v.clientID}}); err != nil || a.status < 400 || a.AccessToken != "" {
		t.Errorf("the issuer answered %d to a revoked certificate: %v", a.status, err)
	}
}

func TestTamperedSupplierRecords(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v, other := l.vendor(t), l.vendor(t)
	h := l.home(t, v)
	h.intact(t)
	gln := v.gln.Int64()
	restore := l.keep(t, "gln", gln, "supplier")
	const newest = ` WHERE gln = $1 AND version = (SELECT max(version) FROM supplier WHERE gln = $1)`
	genuine := one[[]byte](t, l.world, `SELECT record FROM supplier`+newest, gln)
	record := sure(sure(sealKeysOf(l)).Supplier(genuine))

	// A certificate added by hand.
	thief := l.pair(t, devpki.Leaf{CommonName: "thief"})
	added := sure(authz.NewSupplier(record, authz.SupplierFacts{GLN: v.gln, Name: record.Name(), Scopes: record.Scopes(),
		Certificates: append(record.Certificates(), certificateOf(thief))}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now()))

	refused := func(t *testing.T, status int, slug string) {
		t.Helper()
		metric := fmt.Sprintf(evidenceInvalid, "supplier")
		before := scrape(t, l.ready.MetricsURL).sum(metric)
		// The token is from before: the record is read at every request.
		v.with(t, v.accessToken(t), h.path()).problem(t, status, slug)
		v.fetch(t, "/v1/metering-points").problem(t, status, slug)
		if after := scrape(t, l.ready.MetricsURL).sum(metric); status == http.StatusInternalServerError && after < before+2 {
			t.Errorf("the metric rose from %v to %v", before, after)
		}
		for name, cert := range map[string]*caller{"its own": v.caller, "the thief's": l.caller(t, v.clientID, &thief)} {
			a, err := cert.askIssuer(t.Context(), url.Values{"grant_type": {"client_credentials"}, "client_id": {v.clientID}})
			if err != nil || a.status < 400 || a.AccessToken != "" {
				t.Errorf("the issuer answered %d to %s certificate: %v", a.status, name, err)
			}
		}
	}
	for _, at := range []int{3, 30, len(genuine) / 2, len(genuine) - 1} {
		t.Run(fmt.Sprintf("byte %d of %d", at, len(genuine)), func(t *testing.T) {
			defer restore()
			l.sql(t, 1, `UPDATE supplier SET record = set_byte(record, $2::int, get_byte(record, $2::int) # 1)`+newest, gln, at)
			refused(t, http.StatusInternalServerError, "evidence-invalid")
		})
	}
	for name, sealed := range forge(t, added.Payload(), genuine) {
		t.Run("a certificate added by hand "+name, func(t *testing.T) {
			defer restore()
			l.sql(t, 1, `INSERT INTO supplier (gln, version, record, sealed_at) VALUES ($1, $2, $3, now())`, gln, int64(added.Version()), sealed)
			refused(t, http.StatusInternalServerError, "evidence-invalid")
		})
	}
	t.Run("a legal file", func(t *testing.T) {
		defer restore()
		l.sql(t, 1, `UPDATE supplier SET record = (SELECT file FROM legal_file LIMIT 1)`+newest, gln)
		refused(t, http.StatusInternalServerError, "evidence-invalid")
	})
	t.Run("of another supplier", func(t *testing.T) {
		defer restore()
		l.sql(t, 1, fmt.Sprintf(`UPDATE supplier SET record = (SELECT record FROM supplier WHERE gln = %d)`, other.gln.Int64())+newest, gln)
		refused(t, http.StatusUnauthorized, "unauthenticated")
	})
	t.Run("deleted", func(t *testing.T) {
		defer restore()
		l.sql(t, 1, `DELETE FROM supplier WHERE gln = $1`, gln)
		refused(t, http.StatusUnauthorized, "unauthenticated")
	})
	h.intact(t)
}

// The processes' own roles, as they log in, can do what the process does and
// no more.
func TestDatabaseRoles(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	tables := []string{"supplier", "metering_point", "legal_file", "supply_period", "consent", "data_key", "sealed_block", "ingest_batch", "access_log", "goose_db_version",
		"control_entry", "control_heartbeat", "key_tombstone", "fact_mark", "journal_entry", "audit_statement", "audit_leaf", "audit_hash", "audit_checkpoint", "audit_cursor", "market_profile", "idempotency_key",
		"sealed_identity", "identity_index",
		"basis_day", "change_mark", "sealed_block_default", "storage_month", "storage_change",
		"access_hour", "employee_point", "employee_day", "access_unusual", "audit_result", "portal_session", "portal_case"}
	// And the months that sealed_block is of.
	var months []string
	if err := w.db.QueryRow(`SELECT array_agg(tablename::text) FROM pg_tables WHERE tablename ~ '^sealed_block_[0-9_]+$'`).Scan(pq.Array(&months)); err != nil {
		t.Fatal(err)
	}
	tables = append(tables, months...)
	may := map[string]map[string]string{
		"kluis_gateway": {"supplier": "SI", "audit_checkpoint": "S", "legal_file": "SI", "supply_period": "S", "consent": "SID", "data_key": "S", "sealed_block": "S", "access_log": "I", "market_profile": "I",
			"idempotency_key": "SI", "basis_day": "SID", "change_mark": "SI", "identity_index": "S",
			"audit_hash": "S", "access_hour": "S", "employee_day": "S", "access_unusual": "S", "audit_result": "S"},
		"kluis_issuer": {"supplier": "S"},
		"kluis_portal": {"portal_session": "SID", "portal_case": "SID"},
		"kluis_ingest": {"metering_point": "S", "legal_file": "S", "data_key": "SI", "sealed_block": "I", "ingest_batch": "I", "sealed_identity": "I", "identity_index": "I"},
		"kluis_registrar": {"supplier": "SI", "legal_file": "SI", "metering_point": "SI",
			"supply_period": "SID", "consent": "SID", "basis_day": "SID"},
		"kluis_custodian": {"control_entry": "SI", "control_heartbeat": "SI", "key_tombstone": "SI", "data_key": "SID", "sealed_block": "S", "sealed_identity": "S", "identity_index": "D",
			"supplier": "S", "legal_file": "S", "fact_mark": "SI"},
		"kluis_auditor": {"supplier": "S", "legal_file": "S", "access_log": "S", "control_entry": "S", "journal_entry": "SI", "audit_leaf": "SI",
			"audit_statement": "SI", "audit_hash": "SI", "audit_checkpoint": "SI", "audit_cursor": "SI", "market_profile": "S",
			"access_hour": "SID", "employee_point": "SID", "employee_day": "SID", "access_unusual": "SID", "audit_result": "SID"},
	}
	for role, allowed := range may {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			db := w.as(t, role)
			if got := sure(scan[string](db, `SELECT current_user`)); got != role {
				t.Fatalf("logged in as %s", got)
			}
			attempt := func(may bool, stmt string) {
				t.Helper()
				_, err := db.Exec(`BEGIN`)
				if err == nil {
					_, err = db.Exec(stmt) // there is one connection only
				}
				if _, back := db.Exec(`ROLLBACK`); back != nil {
					t.Fatalf("%s: %v", stmt, back)
				}
				var pe *pq.Error
				denied := errors.As(err, &pe) && (pe.Code == "42501" || pe.Code == "0LP01")
				switch {
				case may && denied, !may && err == nil:
					t.Errorf("%s: %v", stmt, err)
				case !may && !denied:
					t.Errorf("%s is refused for another reason: %v", stmt, err)
				}
			}
			for _, table := range tables {
				has := func(p string) bool { return strings.Contains(allowed[table], p) }
				column := "ean"
				switch table {
				case "supplier":
					column = "gln"
				case "goose_db_version", "portal_session", "portal_case":
					column = "id"
				case "control_entry":
					column = "sequence"
				case "control_heartbeat", "fact_mark":
					column = "one"
				case "journal_entry":
					column = "sequence"
				case "audit_leaf", "audit_hash":
					column = "index"
				case "audit_statement":
					column = "kind"
				case "audit_checkpoint":
					column = "size"
				case "audit_cursor":
					column = "kind"
				case "change_mark":
					column = "at"
				case "storage_month":
					column = "month"
				case "market_profile":
					column = "digest"
				case "idempotency_key", "access_hour":
					column = "gln"
				case "employee_day":
					column = "employee"
				case "access_unusual":
					column = "kind"
				case "audit_result":
					column = "whole"
				}
				attempt(has("S"), `SELECT * FROM `+table+` LIMIT 1`)
				attempt(has("I"), `INSERT INTO `+table+` DEFAULT VALUES`)
				attempt(false, `UPDATE `+table+` SET `+column+` = `+column)
				attempt(has("D"), `DELETE FROM `+table)
				attempt(false, `TRUNCATE `+table)
				attempt(has("D"), `LOCK TABLE `+table+` IN ACCESS EXCLUSIVE MODE`)
				attempt(false, `ALTER TABLE `+table+` ADD COLUMN more int`)
				attempt(false, `DROP TABLE `+table)
				attempt(false, `CREATE TRIGGER mine BEFORE INSERT ON `+table+` EXECUTE FUNCTION suppress_redundant_updates_trigger()`)
				attempt(has("S"), `COPY `+table+` TO STDOUT`)
			}
			// Reading the log back, in every way there is: the gateway tells customers
			// what is in it, but for the salts, without which nothing can be proved.
			attempt(role == "kluis_gateway" || role == "kluis_auditor", `SELECT record FROM access_log`)
			attempt(role == "kluis_auditor", `SELECT salt FROM access_log`)
			attempt(role == "kluis_gateway", `INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt)
				VALUES (0, gen_random_uuid(), 0, 1, '', '', decode(repeat('00', 16), 'hex')) RETURNING record`)
			attempt(false, `INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt)
				VALUES (0, gen_random_uuid(), 0, 1, '', '', decode(repeat('00', 16), 'hex')) RETURNING salt`)
			// Nor does it say when a request was first made.
			attempt(false, `INSERT INTO idempotency_key (gln, key_digest, request, consent_id, stored_at) VALUES (0, '', '', gen_random_uuid(), now())`)
			attempt(role == "kluis_gateway" || role == "kluis_custodian" || role == "kluis_auditor", `SELECT ciphertext FROM sealed_block`)
			attempt(role == "kluis_gateway" || role == "kluis_ingest" || role == "kluis_custodian", `SELECT content_mac FROM sealed_block`)
			attempt(role == "kluis_gateway" || role == "kluis_custodian" || role == "kluis_auditor", `SELECT ciphertext FROM sealed_identity`)
			attempt(role == "kluis_gateway", `SELECT blind_index FROM identity_index`)
			attempt(role == "kluis_gateway", `SELECT stored_at FROM ingest_batch`)
			attempt(role == "kluis_gateway", `SELECT ean, changed FROM ingest_batch`)
			attempt(false, `SELECT keys FROM ingest_batch`)
			// The feed is added to, and never changed; a block stays where it is.
			attempt(false, `UPDATE control_entry SET entry = entry`)
			attempt(role == "kluis_custodian", `UPDATE sealed_block SET ciphertext = ciphertext WHERE false`)
			attempt(false, `UPDATE sealed_block SET version = version WHERE false`)
			attempt(false, `UPDATE data_key SET month = month WHERE false`)
			// A session goes on, and stays whose it is.
			attempt(role == "kluis_portal", `UPDATE portal_session SET data = data, expires = expires WHERE false`)
			attempt(false, `UPDATE portal_session SET subject = subject WHERE false`)

			for _, stmt := range []string{
				`CREATE TABLE mine (x int)`,
				`CREATE TEMP TABLE mine (x int)`,
				`CREATE SCHEMA mine`,
				`CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
				`CREATE EXTENSION dblink`,
				`CREATE ROLE mine`,
				`COPY supplier FROM PROGRAM 'id'`,
				`COPY (SELECT 1) TO PROGRAM 'id'`,
				`COPY (SELECT 1) TO '/tmp/kluis-copied'`,
				`SELECT pg_read_file('postgresql.conf')`,
				`SELECT pg_ls_dir('.')`,
				`SELECT lo_import('/etc/passwd')`,
				`SELECT lo_export(1, '/tmp/kluis-exported')`,
				`SELECT pg_stat_file('postgresql.conf')`,
				`SET session_replication_role = replica`,
				`SELECT pg_reload_conf()`,
				`SET ROLE kluis_owner`,
				`SET ROLE postgres`,
				`SET SESSION AUTHORIZATION postgres`,
				`ALTER ROLE ` + role + ` SUPERUSER`,
				`GRANT kluis_owner TO ` + role,
				`GRANT pg_read_all_data TO ` + role,
				`SELECT * FROM pg_authid`,
				`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres' OR usename IS NULL`,
			} {
				attempt(false, stmt)
			}
			// Not in a transaction.
			for _, stmt := range []string{`CREATE DATABASE mine`, `ALTER SYSTEM SET fsync = off`} {
				var pe *pq.Error
				if _, err := db.Exec(stmt); !errors.As(err, &pe) || pe.Code != "42501" {
					t.Errorf("%s: %v", stmt, err)
				}
			}
			for other := range may {
				if other != role {
					attempt(false, `SET ROLE `+other)
				}
			}
			for _, attribute := range []string{"rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls"} {
				if sure(scan[bool](db, `SELECT `+attribute+` FROM pg_roles WHERE rolname = current_user`)) {
					t.Errorf("it has %s", attribute)
				}
			}
			if n := sure(scan[int](db, `SELECT count(*) FROM pg_auth_members WHERE member = current_user::regrole`)); n != 0 {
				t.Errorf("it is member of %d roles", n)
			}
			if n := sure(scan[int](db, `SELECT count(*) FROM pg_class WHERE relowner = current_user::regrole`)); n != 0 {
				t.Errorf("it owns %d relations", n)
			}
		})
	}
	// Nobody may pass on what he may, and what anybody may is nothing.
	for what, query := range map[string]string{
		"grants to PUBLIC": `SELECT count(*) FROM pg_class, aclexplode(relacl) a WHERE relnamespace = 'public'::regnamespace AND a.grantee = 0`,
		"grantable rights": `SELECT count(*) FROM pg_class, aclexplode(relacl) a WHERE a.is_grantable AND a.grantee = ANY (ARRAY['kluis_gateway', 'kluis_issuer', 'kluis_ingest', 'kluis_registrar', 'kluis_custodian', 'kluis_auditor', 'kluis_portal']::regrole[])`,
		"functions": `SELECT count(*) FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) a WHERE pronamespace = 'public'::regnamespace AND a.grantee <> proowner
			AND NOT (proname = 'access_leaf' AND a.grantee = 'kluis_gateway'::regrole AND NOT a.is_grantable)`,
	} {
		if n := one[int](t, w, query); n != 0 {
			t.Errorf("%d %s", n, what)
		}
	}
	// Nothing is missing from the list above.
	var all []string
	if err := w.db.QueryRow(`SELECT array_agg(tablename::text) FROM pg_tables WHERE schemaname = 'public'`).Scan(pq.Array(&all)); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	if want := slices.Sorted(slices.Values(tables)); !slices.Equal(all, want) {
		t.Errorf("tables %q, tried were %q", all, want)
	}
}

// as logs into the database under another role, as the process of that role
// does.
func (w *world) as(t testing.TB, role string) *sql.DB {
	t.Helper()
	u, err := url.Parse(w.ready.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	db, err := sql.Open("postgres", u.String())
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func scan[T any](db *sql.DB, query string) (v T, err error) {
	err = db.QueryRow(query).Scan(&v)
	return v, err
}
