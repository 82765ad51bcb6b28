package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/internal/devpki"
	"kluis/openapi"
	"kluis/openapi/client"
	"kluis/openapi/client/kluis"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// anAnswer is the API's own golden answer: a day on which the clocks go
// forward, gaps, estimates, what is withheld.
func anAnswer(t *testing.T) *client.Readings {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "server", "testdata", "readings.golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r client.Readings
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: printed\n%s\nwant\n%s", name, got, want)
	}
}

func TestReadPrints(t *testing.T) {
	t.Parallel()
	r := anAnswer(t)
	for name, print := range map[string]func(*bytes.Buffer) error{
		"read.table.txt":       func(b *bytes.Buffer) error { return printReadings(b, r, false, ascii) },
		"read.chart.utf8.txt":  func(b *bytes.Buffer) error { return printReadings(b, r, true, blocks) },
		"read.chart.ascii.txt": func(b *bytes.Buffer) error { return printReadings(b, r, true, ascii) },
	} {
		var b bytes.Buffer
		if err := print(&b); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
		if strings.Contains(name, "ascii") && bytes.ContainsFunc(b.Bytes(), func(r rune) bool { return r > 126 }) {
			t.Errorf("%s is not plain", name)
		}
	}
	var b bytes.Buffer
	p := printer{w: bufio.NewWriter(&b), format: "table"}
	p.begin()
	for _, point := range []client.QueryPoint{
		{Ean: r.Ean, Sequence: 1, Series: &r.Series, Withheld: &r.Withheld},
		{Ean: otherEAN, Sequence: 2, Problem: &client.Problem{Type: "urn:kluis:problem:metering-point-not-found", Status: 404}},
	} {
		if err := p.point(&kluis.Point{QueryPoint: point}); err != nil {
			t.Fatal(err)
		}
	}
	p.end(&kluis.Result{})
	if err := p.w.Flush(); err != nil {
		t.Fatal(err)
	}
	golden(t, "read.many.txt", b.Bytes())
}

// A table made here of JSON is the one that the API makes.
func TestReadTableIsTheAPIs(t *testing.T) {
	t.Parallel()
	r := anAnswer(t)
	var b bytes.Buffer
	zone, err := time.LoadLocation(r.TimeZone)
	if err != nil {
		t.Fatal(err)
	}
	p := printer{w: bufio.NewWriter(&b), format: "csv", zone: zone}
	p.begin()
	if err := p.point(&kluis.Point{QueryPoint: client.QueryPoint{Ean: r.Ean, Series: &r.Series, Withheld: &r.Withheld}}); err != nil {
		t.Fatal(err)
	}
	if err := p.w.Flush(); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join("..", "..", "server", "testdata", "readings.golden.csv"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.ReplaceAll(b.String(), ",0,,\r\n", ",,,\r\n"); got != string(want) { // number 0 is none
		t.Errorf("%s\nthe API has\n%s", got, want)
	}
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	columns, _, _ := strings.Cut(doc.Components.Schemas["Table"].Value.Example.(string), "\n")
	if columns != strings.Join(csvColumns, ",") {
		t.Error("the columns are not the contract's")
	}
}

// Whoever is withheld something is told what to do about it.
func TestEveryReasonHasAdvice(t *testing.T) {
	t.Parallel()
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	reasons := doc.Components.Schemas["WithheldReason"].Value.Enum
	for _, r := range reasons {
		if advice[client.WithheldReason(r.(string))] == "" {
			t.Errorf("no advice about %s", r)
		}
	}
	if len(reasons) != len(advice) {
		t.Errorf("%d reasons, advice about %d", len(reasons), len(advice))
	}
	for _, q := range doc.Components.Schemas["Quality"].Value.Enum {
		if marks[client.Quality(q.(string))] == "" {
			t.Errorf("no mark for %s", q)
		}
	}
}

func TestDrawing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		env  map[string]string
		utf8 bool
	}{
		{map[string]string{}, false}, {map[string]string{"LANG": "nl_NL.UTF-8"}, true}, {map[string]string{"LANG": "C"}, false},
		{map[string]string{"LANG": "nl_NL.utf8", "LC_ALL": "POSIX"}, false}, {map[string]string{"LC_CTYPE": "en_US.UTF-8", "LANG": "C"}, true},
		{map[string]string{"LANG": "nl_NL.UTF-8", "NO_COLOR": "1"}, false},
	} {
		if got := drawing(func(name string) string { return tt.env[name] }); (got.bar == blocks.bar) != tt.utf8 {
			t.Errorf("%v draws with %q", tt.env, got.bar)
		}
	}
}

// What --resume remembers is of one request, and of an output that has not
// become shorter.
func TestPlace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	output, state := filepath.Join(dir, "out"), filepath.Join(dir, "state")
	q := client.ReadingsQuery{From: kluis.Date(2026, time.March, 1), To: kluis.Date(2026, time.April, 1), Purpose: client.PurposeBILLING}
	f, err := os.OpenFile(output, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	p := place{Query: q, Format: "ndjson", Output: output, Checkpoint: "c"}
	if err := p.save(state, f); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(state); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := f.WriteString("half a li"); err != nil {
		t.Fatal(err)
	}
	again := place{Query: q, Format: "ndjson", Output: output}
	if err := again.load(state); err != nil || again.Checkpoint != "c" || again.Size != 8 {
		t.Fatalf("%+v, %v", again, err)
	}
	if err := again.cut(f); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(output); err != nil || string(b) != "one\ntwo\n" {
		t.Errorf("%q, %v", b, err)
	}
	other := q
	other.Purpose = client.PurposeSWITCH
	for _, p := range []place{{Query: other, Format: "ndjson", Output: output}, {Query: q, Format: "csv", Output: output}, {Query: q, Format: "ndjson", Output: state}} {
		if err := p.load(state); err == nil || !strings.Contains(err.Error(), "another request") {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if err := f.Truncate(3); err != nil {
		t.Fatal(err)
	}
	if err := again.cut(f); err == nil {
		t.Error("an output that lost something is gone on with")
	}
	none := place{Query: q}
	if err := none.load(filepath.Join(dir, "nothing")); err != nil || none.Checkpoint != "" {
		t.Errorf("%+v, %v", none, err)
	}
	if err := os.WriteFile(state, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := none.load(state); exitCode(t.Context(), err) != exitUsage {
		t.Error(err)
	}
}

func TestReadEANs(t *testing.T) {
	t.Parallel()
	list := "# mine\n" + otherEAN + "\n\n " + testEAN + " \n" + otherEAN + "\n"
	got, err := (&readCmd{EANFile: "-"}).eans(strings.NewReader(list))
	if err != nil || !slices.Equal(got, []string{testEAN, otherEAN}) {
		t.Errorf("%v, %v", got, err)
	}
	for text, want := range map[string]string{testEAN[:17] + "9\n": "line 1", "\n# none\n": "no metering point in it"} {
		if _, err := (&readCmd{EANFile: "-"}).eans(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), testEAN[:10]) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Nobody there, or somebody else: the exit code is that of "try again", or not,
// and it is said what to look at.
func TestReadReachesNobody(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := devpki.NewCA("operator")
	if err != nil {
		t.Fatal(err)
	}
	crt, key, err := ca.IssueFiles(dir, "client", devpki.Leaf{CommonName: "client"})
	if err != nil {
		t.Fatal(err)
	}
	caFile := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(caFile, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	other := httptest.NewTLSServer(http.NotFoundHandler())
	other.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(other.Close)
	for url, want := range map[string]struct {
		code int
		says string
	}{
		"https://127.0.0.1:1": {exitUnavailable, "is the address right, and the installation running?"},
		other.URL:             {exitFailed, "--ca is not the authority of this server"},
		"http://127.0.0.1:1":  {exitUsage, "must be https://"},
	} {
		for _, command := range [][]string{{"read", "--list"}, {"read", "--ean", testEAN}, {"changes"}} {
			var out, complaint bytes.Buffer
			args := append(command, "--gateway", url, "--issuer", url, "--gln", testGLN, "--ca", caFile, "--cert", crt, "--key", key, "--patience", "0s")
			if code := run(t.Context(), args, streams{strings.NewReader(""), &out, &complaint}); code != want.code || !strings.Contains(complaint.String(), want.says) || out.Len() > 0 {
				t.Errorf("%v of %s: exit code %d: %s", command, url, code, complaint.String())
			}
		}
	}
}
