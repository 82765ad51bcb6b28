package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"kluis/internal/devpki"
)

const registerHeading = "ean,commodity,supplier,supply_from,supply_to,moved_in,moved_out\n"

func (w *world) file(ean string) legalFileView {
	w.t.Helper()
	var v legalFileView
	if err := json.Unmarshal([]byte(w.must("supply", "show", "--json", "--ean", ean)), &v); err != nil {
		w.t.Fatal(err)
	}
	return v
}

// TestSupplyImport imports through the real cryptoserver into the real database.
func TestSupplyImport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for gln, name := range map[string]string{testGLN: "Polderstroom", otherGLN: "Duinstroom"} {
		crt, _ := w.certificate(name, w.ca, devpki.Leaf{})
		w.must("supplier", "add", "--gln", gln, "--name", name, "--certificate", crt)
	}
	text := registerHeading +
		testEAN + ",electricity," + testGLN + ",2024-01-01,2025-03-01,2023-01-01,\n" +
		testEAN + ",," + otherGLN + ",2025-03-01,,,\n" +
		testGas + ",gas," + testGLN + ",2024-01-01,,2023-01-01,2025-06-01\n" +
		testGas + ",gas,,,,2025-06-01,\n"
	path := w.write("extract.csv", []byte(text))

	out := w.must("supply", "import", "--dry-run", path)
	if !strings.Contains(out, "new would be        2") || !strings.Contains(out, "steps would be      8") || w.count("legal_file") != 0 {
		t.Errorf("dry run: %s", out)
	}
	out = w.must("supply", "import", path)
	if !strings.Contains(out, "extract.csv: 4 rows, 2 metering points") || !strings.Contains(out, "new        2") || w.count("legal_file") != 8 {
		t.Errorf("%s", out)
	}
	v := w.file(testEAN)
	if v.Version != 4 || !slices.Equal(v.Supply, []supplyView{{testGLN, daysView{"2024-01-01", "2025-03-01"}}, {otherGLN, daysView{"2025-03-01", ""}}}) ||
		!slices.Equal(v.Occupancies, []daysView{{"2023-01-01", ""}}) {
		t.Errorf("%+v", v)
	}
	if v := w.file(testGas); v.Commodity != "gas" || !slices.Equal(v.Occupancies, []daysView{{"2023-01-01", "2025-06-01"}, {"2025-06-01", ""}}) {
		t.Errorf("%+v", v)
	}

	// Again, and from standard input.
	if code, out, complaint := w.kluisTyping(strings.ReplaceAll(text, ",", ";"), "supply", "import", "--json", "-"); code != exitOK || !strings.Contains(out, `"unchanged": 2`) || w.count("legal_file") != 8 {
		t.Errorf("again: exit code %d: %s%s", code, out, complaint)
	}

	// The register was corrected.
	path = w.write("corrected.csv", []byte(strings.ReplaceAll(text, "2025-03-01", "2025-02-01")))
	code, out, complaint := w.kluis("supply", "import", path)
	if code != exitRefused || !strings.Contains(complaint, "corrected.csv: line ") || !strings.Contains(complaint, "--correct") || w.count("legal_file") != 8 {
		t.Errorf("exit code %d: %s%s", code, out, complaint)
	}
	for _, secret := range []string{testEAN, testGLN, otherGLN} {
		if strings.Contains(complaint+out, secret) {
			t.Errorf("repeats the file: %s%s", complaint, out)
		}
	}
	out = w.must("supply", "import", "--correct", path)
	if !strings.Contains(out, "1, 1 of them corrections") || w.count("legal_file") != 9 {
		t.Errorf("%s", out)
	}
	if v := w.file(testEAN); !slices.Equal(v.Supply, []supplyView{{testGLN, daysView{"2024-01-01", "2025-02-01"}}, {otherGLN, daysView{"2025-02-01", ""}}}) {
		t.Errorf("%+v", v)
	}

	// By hand.
	w.must("supply", "correct", "--ean", testEAN, "--supplier", testGLN, "--from", "2025-02-01", "--to", "2025-03-01")
	w.must("supply", "correct", "--ean", testEAN, "--nobody", "--from", "2026-01-01")
	if v := w.file(testEAN); !slices.Equal(v.Supply, []supplyView{{testGLN, daysView{"2024-01-01", "2025-03-01"}}, {otherGLN, daysView{"2025-03-01", "2026-01-01"}}}) {
		t.Errorf("%+v", v)
	}
	w.must("supply", "correct-move", "--ean", testGas, "--was", "2025-06-01", "--is", "2025-05-01")
	if v := w.file(testGas); !slices.Equal(v.Occupancies, []daysView{{"2023-01-01", "2025-05-01"}, {"2025-05-01", ""}}) {
		t.Errorf("%+v", v)
	}
	for want, args := range map[string][]string{
		"supplier not registered":  {"correct", "--ean", testEAN, "--supplier", "8712000000035", "--from", "2025-02-01"},
		"must be later than":       {"correct", "--ean", testEAN, "--supplier", testGLN, "--from", "2025-02-01", "--to", "2025-02-01"},
		"recorded so already":      {"correct", "--ean", testEAN, "--nobody", "--from", "2026-01-01"},
		"nobody moved in or out":   {"correct-move", "--ean", testGas, "--was", "2025-06-01", "--is", "2025-05-01"},
		"no such file":             {"import", "nowhere.csv"},
		"not registered: register": {"correct-move", "--ean", otherEAN, "--was", "2025-06-01", "--is", "2025-05-01"},
	} {
		if code, _, complaint := w.kluis(append([]string{"supply"}, args...)...); code == exitOK || !strings.Contains(complaint, want) {
			t.Errorf("%v: exit code %d: %s", args, code, complaint)
		}
	}

	// A bad row: what was before it is done, its metering point is not.
	bad := registerHeading + testEAN + ",,,,,2023-01-01,\n" + otherEAN + ",electricity," + testGLN + ",2024-01-01,,,\n" + otherEAN + ",electricity," + testGLN + ",2024-06-01,,,\n"
	path = w.write("bad.csv", []byte(bad))
	n := w.count("legal_file")
	code, out, complaint = w.kluis("supply", "import", "--json", path)
	var report importView
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitRefused || !report.Stopped || report.BadRows != 1 || report.Bad[0].Line != 3 || report.Bad[0].Field != "supply_to" || w.count("legal_file") != n {
		t.Errorf("%v: exit code %d: %s%s", err, code, out, complaint)
	}
	// Nothing was done, so nothing is counted, and the row is said once.
	code, out, complaint = w.kluis("supply", "import", path)
	if code != exitRefused || out != "" || strings.Count(complaint, "line 3") != 1 || !strings.Contains(complaint, "\nnothing was changed; correct the file and run it again\n") {
		t.Errorf("exit code %d: %s%s", code, out, complaint)
	}
	code, out, complaint = w.kluis("supply", "import", "--skip-bad", path)
	if code != exitOK || !strings.Contains(out, "left out 1 metering points") || !strings.Contains(out, "line 3, column") || w.count("legal_file") != n {
		t.Errorf("exit code %d: %s%s", code, out, complaint)
	}

	// No back end: try again.
	path = w.write("more.csv", fmt.Appendf(nil, "%s%s,electricity,%s,2024-01-01,,,\n", registerHeading, otherEAN, testGLN))
	w.stop()
	if code, out, complaint := w.kluis("supply", "import", path); code != exitUnavailable || !strings.Contains(complaint, "nothing was changed; run it again\n") || w.count("legal_file") != n {
		t.Errorf("exit code %d: %s%s", code, out, complaint)
	}
}
