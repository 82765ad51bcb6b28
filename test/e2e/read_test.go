package e2e

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// read runs kluis read or kluis changes as a person would.
func (w *world) read(t testing.TB, args ...string) (out, complaint string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(w.bin, "kluis"), args...)
	cmd.Env = append(w.env(), "KLUIS_STATE="+w.state, "LC_ALL=C.UTF-8")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		var e *exec.ExitError
		if !errors.As(err, &e) {
			t.Fatal(err)
		}
		code = e.ExitCode()
	}
	return stdout.String(), stderr.String(), code
}

// What a person types, against the real programs.
func TestReadCommand(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	dir := t.TempDir()
	must := func(args ...string) string {
		t.Helper()
		out, complaint, code := w.read(t, args...)
		if code != 0 {
			t.Fatalf("kluis %v: exit code %d: %s", args, code, complaint)
		}
		return out
	}
	ean := w.ready.MeteringPoints[0].EAN
	months := []string{"--class", "registers"} // of last month, to bill by

	table := must(append([]string{"read", "--ean", ean}, months...)...)
	for _, want := range []string{ean + ", BILLING, ", "import_low", "2 of 2", "SUPPLY_PERIODIC", "Interaction "} {
		if !strings.Contains(table, want) {
			t.Errorf("%q is not in\n%s", want, table)
		}
	}
	if chart := must(append([]string{"read", "--ean", ean, "--chart"}, months...)...); !strings.Contains(chart, "█") {
		t.Errorf("no chart in\n%s", chart)
	}
	if list := must("read", "--list"); !strings.Contains(list, ean) {
		t.Errorf("%s is not in the list\n%s", ean, list)
	}
	if xml := must("read", "--ean", ean, "--format", "xml"); !strings.HasPrefix(xml, "<?xml") || !strings.Contains(xml, "IntervalReading") {
		t.Errorf("%s", xml)
	}
	var answer struct{ Series []any }
	if err := json.Unmarshal([]byte(must("read", "--ean", ean, "--format", "json")), &answer); err != nil || len(answer.Series) == 0 {
		t.Errorf("%v, %d series", err, len(answer.Series))
	}
	if changes := must("changes", "--since", time.Now().AddDate(0, 0, -30).Format(time.DateOnly), "--format", "ndjson"); !strings.Contains(changes, `"kind":"ARRIVED"`) {
		t.Errorf("nothing arrived: %s", changes)
	}

	// One metering point as the API writes its table, and the same of the
	// stream.
	rows := func(s string) [][]string {
		t.Helper()
		all, err := csv.NewReader(strings.NewReader(s)).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		number := slices.Index(all[0], "sequence")
		all = slices.DeleteFunc(all, func(row []string) bool { return row[0] != "record" && row[1] != ean })
		for _, row := range all[1:] {
			row[number] = ""
		}
		return all
	}
	one := rows(must(append([]string{"read", "--ean", ean, "--format", "csv"}, months...)...))
	many := rows(must(append([]string{"read", "--format", "csv"}, months...)...))
	if len(one) < 3 || !slices.EqualFunc(one, many, func(a, b []string) bool { return slices.Equal(a, b) }) {
		t.Errorf("the API's table\n%v\nthe stream's\n%v", one, many)
	}

	// A break, and patience that is over: the output and the place go
	// together, and the same command goes on, without loss or repetition.
	// Of test metering points, which no other test changes but the one that is
	// to be damaged.
	pack, _ := w.packTarget(t)
	var eans []string
	for _, p := range pack.Points {
		if p.Name != "damaged" && p.Name != "foreign" {
			eans = append(eans, p.EAN.String())
		}
	}
	to := pack.Points[0].Readings[0].Days[0].To - 1 // the closing read's day
	asked := []string{"--ean", strings.Join(eans, ","), "--purpose", "ENERGY_MANAGEMENT", "--from", (to - 60).String(), "--to", to.String()}
	whole := must(append([]string{"read", "--supplier", "north", "--format", "ndjson"}, asked...)...)
	if strings.Count(whole, "\n") < 5 {
		t.Fatalf("%d metering points are too few to break off among", strings.Count(whole, "\n"))
	}
	output, place := filepath.Join(dir, "out.ndjson"), filepath.Join(dir, "place")
	pki := filepath.Join(w.state, "pki", "conformance-north")
	parts := 0
	for gateway := newBreaker(t, w.ready.GatewayURL, 16000, 1).url(); ; gateway = w.ready.GatewayURL {
		parts++
		_, complaint, code := w.read(t, append([]string{"read", "--format", "ndjson", "-o", output, "--resume", place, "--patience", "0s",
			"--gateway", gateway, "--issuer", w.ready.IssuerURL, "--gln", "9520000000011", "--ca", w.ready.CAFile, "--cert", pki + ".crt", "--key", pki + ".key"}, asked...)...)
		if code == 0 {
			if !strings.Contains(complaint, "Manifest verified") {
				t.Errorf("no word of the manifest: %s", complaint)
			}
			break
		}
		if code != 4 || parts > 1 || !strings.Contains(complaint, "The same command goes on from there.") {
			t.Fatalf("exit code %d: %s", code, complaint)
		}
		// What was not finished writing is cut off.
		f, err := os.OpenFile(output, os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(`{"type":"point","half`)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	if parts != 2 || string(got) != whole {
		t.Errorf("in %d parts\n%s\nin one\n%s", parts, got, whole)
	}
	if _, err := os.Stat(place); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the place is still remembered: %v", err)
	}

	// A consent that is followed until it is interrupted.
	ctx, interrupt := context.WithCancel(t.Context())
	follow := exec.CommandContext(ctx, filepath.Join(w.bin, "kluis"), "changes", "--supplier", "south", "--follow", "--every", "1s", "--resume", place)
	follow.Env = append(w.env(), "KLUIS_STATE="+w.state)
	follow.Cancel = func() error { return follow.Process.Signal(os.Interrupt) }
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cursor is remembered", func() bool { b, err := os.ReadFile(place); return err == nil && len(b) > 10 })
	interrupt()
	_ = follow.Wait()
	if code := follow.ProcessState.ExitCode(); code != 0 {
		t.Errorf("interrupted, it ended with exit code %d", code)
	}
}
