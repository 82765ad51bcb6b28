package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/meter"
	"kluis/migrations"
)

const testMapping = `
time: {columns: [T], format: RFC3339, marks: start}
every: PT1H
fields:
  - {field: import_intervals, reads: consumption, columns: [V], unit: kWh}
  - {field: import_low, reads: consumption, columns: [V], unit: kWh, start: "100"}
  - {field: gas_intervals, reads: consumption, columns: [G], unit: m3}
`

// hours writes n hours of a file for testMapping, from a local midnight on.
func hours(from string, n int, value func(i int) string) string {
	t, err := time.Parse(time.RFC3339, from)
	if err != nil {
		panic(err)
	}
	var b strings.Builder
	b.WriteString("T,V,G\n")
	for i := range n {
		fmt.Fprintf(&b, "%s,%s,0.5\n", t.Add(time.Duration(i)*time.Hour).Format(time.RFC3339), value(i))
	}
	return b.String()
}

func (w *world) ingest(file string, more ...string) (int, report, string) {
	w.t.Helper()
	args := append([]string{"ingest", "csv", "--json", "--mapping", filepath.Join(w.dir, "test.yaml"), "--ean", testEAN, file}, more...)
	code, out, complaint := w.kluis(args...)
	var r report
	if code == exitOK {
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			w.t.Fatalf("%v: %s", err, out)
		}
	}
	return code, r, complaint
}

func TestIngestForReal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setUp()
	w.write("test.yaml", []byte(testMapping))
	one := func(int) string { return "1.5" }
	const start = "2024-01-30T00:00:00+01:00"

	// Stored, across a month's end, with the closing register read.
	file := w.write("a.csv", []byte(hours(start, 72, one)))
	code, r, complaint := w.ingest(file, "--gas-ean", testGas)
	if code != exitOK || r.Rows != 72 || r.Stored != 3+4+3 || r.Corrected != 0 || r.Unchanged != 0 || len(r.LeftOut) != 0 {
		t.Fatalf("exit code %d, %+v: %s", code, r, complaint)
	}
	blocks := w.open(testEAN, "import_intervals")
	day := meter.DayFromDate(2024, time.January, 31)
	occupied := meter.DayFromDate(2023, time.January, 1)
	if b := blocks[day]; len(blocks) != 3 || b.version != 1 || b.count != 24 || b.Values[23] != 1500 || b.occupancy != occupied {
		t.Fatalf("%d blocks, %+v", len(blocks), b)
	}
	if b := w.open(testEAN, "import_low")[day+2]; b.Values[0] != 100000+72*1500 || b.Quality[0] != meter.Calculated {
		t.Fatalf("closing read %+v", b)
	}
	if n := len(w.open(testGas, "gas_intervals")); n != 3 {
		t.Fatalf("%d days of gas", n)
	}
	// A key per metering point, class and month: intervals and registers of
	// January and February, gas intervals of both.
	keys, stored := w.count("data_key"), w.count("sealed_block")
	if keys != 6 || stored != 10 {
		t.Fatalf("%d keys, %d blocks", keys, stored)
	}

	// Again: nothing changes. The gas is left out, and that is said.
	code, r, _ = w.ingest(file)
	if code != exitOK || r.Stored != 0 || r.Unchanged != 7 || len(r.LeftOut) != 1 || r.LeftOut[0] != "gas_intervals" {
		t.Fatalf("again: exit code %d, %+v", code, r)
	}
	if w.count("sealed_block") != stored || w.count("data_key") != keys {
		t.Fatal("identical content was stored again")
	}

	// A correction of one value makes one new version of its day, and moves
	// the register reads after it.
	correction := w.write("b.csv", []byte(hours(start, 72, func(i int) string {
		if i == 30 {
			return "2.5"
		}
		return "1.5"
	})))
	code, r, _ = w.ingest(correction)
	if code != exitOK || r.Stored != 3 || r.Corrected != 3 || r.Unchanged != 4 {
		t.Fatalf("correction: exit code %d, %+v", code, r)
	}
	if b := w.open(testEAN, "import_intervals")[day]; b.version != 2 || b.Values[6] != 2500 || b.Values[5] != 1500 {
		t.Fatalf("corrected block %+v", b)
	}
	if b := w.open(testEAN, "import_intervals")[day-1]; b.version != 1 {
		t.Fatalf("the day before has version %d", b.version)
	}
	if w.count("data_key") != keys {
		t.Fatal("a correction minted keys")
	}

	// Fewer values than stored: refused as a whole, unless told.
	stored = w.count("sealed_block")
	poorer := w.write("c.csv", []byte(hours(start, 47, one)))
	code, _, complaint = w.ingest(poorer)
	if code != exitRefused || !strings.Contains(complaint, "import_intervals on 2024-01-31 has 23, stored are 24") || !strings.Contains(complaint, "--replace") {
		t.Fatalf("fewer: exit code %d: %s", code, complaint)
	}
	if w.count("sealed_block") != stored {
		t.Fatal("something of a refused file was stored")
	}
	if code, r, complaint = w.ingest(poorer, "--replace"); code != exitOK || r.Corrected == 0 {
		t.Fatalf("--replace: exit code %d, %+v: %s", code, r, complaint)
	}
	if b := w.open(testEAN, "import_intervals")[day]; b.version != 3 || b.count != 23 || b.Values[23] != meter.Null {
		t.Fatalf("replaced block %+v", b)
	}
	// What the file does not speak of stays.
	if b := w.open(testEAN, "import_intervals")[day+1]; b.version != 1 || b.count != 24 {
		t.Fatalf("untouched block %+v", b)
	}
}

func TestIngestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setUp()
	mapping := w.write("test.yaml", []byte(testMapping))
	good := hours("2024-01-30T00:00:00+01:00", 30, func(int) string { return "1" })
	file := w.write("good.csv", []byte(good))
	broken := w.write("broken.csv", []byte(strings.Replace(good, ",1,0.5", ",1;0,0.5", 2)))

	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"malformed line":  {[]string{"--ean", testEAN, broken}, exitRefused, "broken.csv: line 2, column 27: "},
		"unknown point":   {[]string{"--ean", otherEAN, file}, exitFailed, "register it first with kluis supply set"},
		"wrong commodity": {[]string{"--ean", testGas, file}, exitFailed, "commodity mismatch"},
		"gas at an electricity point": {[]string{"--ean", testGas, "--gas-ean", testEAN, file}, exitFailed,
			"commodity mismatch"},
		"the same twice":  {[]string{"--ean", testEAN, "--gas-ean", testEAN, file}, exitUsage, "gas has a metering point of its own"},
		"unknown mapping": {[]string{"--ean", testEAN, "--mapping", "nothing", file}, exitUsage, "nl_dsmrreader"},
		"unknown start":   {[]string{"--ean", testEAN, "--start", "export_low=1", file}, exitUsage, "start of"},
	} {
		code, _, complaint := w.kluis(append([]string{"ingest", "csv", "--mapping", mapping}, c.args...)...)
		if code != c.code || !strings.Contains(complaint, c.want) {
			t.Errorf("%s: exit code %d: %s", name, code, complaint)
		}
		if strings.Contains(complaint, testEAN) || strings.Contains(complaint, otherEAN) {
			t.Errorf("%s: the complaint names the metering point: %s", name, complaint)
		}
	}
	if w.count("sealed_block") != 0 || w.count("data_key") != 0 {
		t.Fatal("something was stored")
	}

	code, out, _ := w.kluis("ingest", "csv", "--mapping", mapping, "--ean", testEAN, "--skip-bad", broken)
	if code != exitOK || !strings.Contains(out, "skipped 2 bad lines:\n  line 2, column 27: ") || !strings.Contains(out, "line 3, column 27: ") {
		t.Errorf("--skip-bad: exit code %d: %s", code, out)
	}
	if b := w.open(testEAN, "import_intervals")[meter.DayFromDate(2024, time.January, 30)]; b.count != 22 {
		t.Errorf("%d values", b.count)
	}

	// A legal file that was put there by hand is not believed.
	root := w.db.Open(t, migrations.RoleOwner)
	if _, err := root.Exec(`UPDATE legal_file SET file = set_byte(file, octet_length(file) - 1, get_byte(file, octet_length(file) - 1) # 1)`); err != nil {
		t.Fatal(err)
	}
	code, _, complaint := w.kluis("ingest", "csv", "--mapping", mapping, "--ean", testEAN, file)
	if code != exitFailed || !strings.Contains(complaint, "does not verify") {
		t.Errorf("altered legal file: exit code %d: %s", code, complaint)
	}
	// So is one of another metering point, genuine as it is.
	if _, err := root.Exec(`UPDATE legal_file SET file = set_byte(file, octet_length(file) - 1, get_byte(file, octet_length(file) - 1) # 1)`); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Exec(`UPDATE legal_file SET file = (SELECT file FROM legal_file o WHERE o.ean = $2 ORDER BY version DESC LIMIT 1) WHERE ean = $1`, testEAN, testGas); err != nil {
		t.Fatal(err)
	}
	code, _, complaint = w.kluis("ingest", "csv", "--mapping", mapping, "--ean", testEAN, file)
	if code != exitFailed || !strings.Contains(complaint, "of another metering point") {
		t.Errorf("swapped legal file: exit code %d: %s", code, complaint)
	}
}

// A move starts new data keys, and days before anybody lived there have
// theirs.
func TestIngestOccupancies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setUp()
	w.write("test.yaml", []byte(testMapping))
	w.must("supply", "set", "--ean", testEAN, "--supplier", otherSupplier(w), "--from", "2024-02-15", "--occupied-from", "2024-02-15")
	for _, from := range []string{"2024-02-10T00:00:00+01:00", "2022-12-30T00:00:00+01:00"} {
		file := w.write("x.csv", []byte(hours(from, 240, func(int) string { return "1" })))
		if code, _, complaint := w.ingest(file); code != exitOK {
			t.Fatalf("exit code %d: %s", code, complaint)
		}
	}
	blocks := w.open(testEAN, "import_intervals")
	for day, want := range map[string]string{
		"2022-12-31": "1970-01-01", "2023-01-01": "2023-01-01", "2024-02-14": "2023-01-01", "2024-02-15": "2024-02-15",
	} {
		d, err := meter.ParseDay(day)
		if err != nil {
			t.Fatal(err)
		}
		if got := blocks[d].occupancy.String(); got != want {
			t.Errorf("%s: key of the occupancy of %s, want %s", day, got, want)
		}
	}
}

func otherSupplier(w *world) string {
	crt, _ := w.certificate("other", w.ca, devpki.Leaf{})
	w.must("supplier", "add", "--gln", otherGLN, "--name", "Waddenlicht", "--certificate", crt)
	return otherGLN
}

// Two imports of the same file at once: one stores, the other finds it stored.
func TestIngestConcurrently(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setUp()
	w.write("test.yaml", []byte(testMapping))
	file := w.write("a.csv", []byte(hours("2024-01-01T00:00:00+01:00", 24*20, func(int) string { return "1" })))
	type outcome struct {
		code int
		r    report
	}
	done := make(chan outcome)
	for range 2 {
		go func() {
			code, r, _ := w.ingest(file)
			done <- outcome{code, r}
		}()
	}
	storedBlocks := 0
	for range 2 {
		o := <-done
		if o.code != exitOK {
			t.Errorf("exit code %d", o.code)
		}
		storedBlocks += o.r.Stored
	}
	if n := w.count("sealed_block"); n != 20+21 || storedBlocks != n || w.count("data_key") != 2 {
		t.Errorf("%d blocks in the database, %d reported, %d keys", n, storedBlocks, w.count("data_key"))
	}
}

func TestIngestWithoutBackEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setUp()
	w.write("test.yaml", []byte(testMapping))
	file := w.write("a.csv", []byte(hours("2024-01-01T00:00:00+01:00", 24, func(int) string { return "1" })))
	w.stop()
	if code, _, complaint := w.ingest(file); code != exitUnavailable {
		t.Errorf("cryptoserver down: exit code %d: %s", code, complaint)
	}
	if w.count("sealed_block") != 0 || w.count("data_key") != 0 {
		t.Error("half of it was stored")
	}
	conf, err := config.Load[config.Operator](w.config)
	if err != nil {
		t.Fatal(err)
	}
	conf.IngestURL = "postgres://kluis_ingest@127.0.0.1:1/kluis?sslmode=disable"
	if err := config.Write(w.config, conf); err != nil {
		t.Fatal(err)
	}
	if code, _, complaint := w.ingest(file); code != exitUnavailable {
		t.Errorf("database down: exit code %d: %s", code, complaint)
	}
	conf.IngestURL = w.db.URL(migrations.RoleRegistrar)
	if err := config.Write(w.config, conf); err != nil {
		t.Fatal(err)
	}
	if code, _, complaint := w.ingest(file); code != exitFailed || !strings.Contains(complaint, "must be kluis_ingest") {
		t.Errorf("another role: exit code %d: %s", code, complaint)
	}
}

// TestIngestRealHome imports a whole year of a real household.
func TestIngestRealHome(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("KLUIS_SHARED_DATA")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "data")
	}
	file := filepath.Join(dir, "interval", "nl_slimmemeterportal_15min_cumulative.csv.gz")
	if _, err := os.Stat(file); err != nil {
		t.Skipf("real readings not found (KLUIS_SHARED_DATA, or ../shared/data beside the module): %v", err)
	}
	w := newWorld(t)
	w.setUp()
	began := time.Now()
	t.Log(w.must("ingest", "csv", "--mapping", "nl_slimmemeterportal", "--ean", testEAN, "--gas-ean", testGas, file))
	t.Logf("%d blocks in %s", w.count("sealed_block"), time.Since(began).Round(time.Millisecond))
	var sum meter.Value
	known := 0
	for _, b := range w.open(testEAN, "import_intervals") {
		for _, v := range b.Values {
			if v != meter.Null {
				sum += v
				known++
			}
		}
	}
	if sum != 13885750 || known != 58635 {
		t.Errorf("%d Wh in %d values", sum, known)
	}
	low := w.open(testEAN, "import_low")
	if v := low[meter.DayFromDate(2024, time.January, 1)].Values[0]; v != 6328420 {
		t.Errorf("read of 2024-01-01: %d", v)
	}
	if _, ok := low[meter.DayFromDate(2023, time.January, 1)]; ok {
		t.Error("a read that is not there was stored")
	}
	if out := w.must("ingest", "csv", "--mapping", "nl_slimmemeterportal", "--ean", testEAN, "--gas-ean", testGas, file); !strings.Contains(out, "stored 0 blocks (0 corrections)") {
		t.Errorf("again: %s", out)
	}
}

func TestRefusedStepsLeaveNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	conf, err := config.Load[config.Operator](w.config)
	if err != nil {
		t.Fatal(err)
	}
	r, err := backend.OpenRegistrar(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ean, err := meter.ParseEAN(testEAN)
	if err != nil {
		t.Fatal(err)
	}
	gln, err := meter.ParseGLN(testGLN)
	if err != nil {
		t.Fatal(err)
	}
	// Two steps that exclude each other: neither is stored.
	_, err = r.ChangeLegalFile(t.Context(), ean, func(*authz.LegalFile) ([]authz.Step, error) {
		return []authz.Step{
			authz.Register{EAN: ean, Commodity: meter.Electricity},
			authz.SetSupply{Supplier: gln, Days: meter.DayRange{From: 20000, To: 20010}},
			authz.SetSupply{Supplier: gln, Days: meter.DayRange{From: 20005, To: 20020}},
		}, nil
	})
	if err == nil || w.count("legal_file") != 0 {
		t.Errorf("%v, %d versions stored", err, w.count("legal_file"))
	}
}
