package main

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

// TestLeafHash pins what auditlog/leaf pins too: this program shares no code
// with it.
func TestLeafHash(t *testing.T) {
	t.Parallel()
	h := leafHash(bytes.Repeat([]byte{9}, 16), []byte("record"), []byte("receipt"))
	if got := hex.EncodeToString(h[:]); got != "f5d634413ed7ccad207cff35474b1de7d04024de3fec808513586860d21cb108" {
		t.Error(got)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"x"}, {"--keys", "none", "--origin", "a", "b"}, {"--nothing"}} {
		var out, complaint bytes.Buffer
		if code := run(args, strings.NewReader(""), &out, &complaint); code != exitUsage || out.Len() > 0 || complaint.Len() == 0 {
			t.Errorf("%v: %d: %s", args, code, complaint.String())
		}
	}
	if code := run([]string{"--help"}, nil, &bytes.Buffer{}, &bytes.Buffer{}); code != exitProven {
		t.Errorf("--help: %d", code)
	}
}

// TestDescribeSupplierStep pins the one record that says more than the others;
// internal/audit pins the same bytes.
func TestDescribeSupplierStep(t *testing.T) {
	t.Parallel()
	zeros := strings.Repeat("00", 32)
	record, err := hex.DecodeString("00000013" + hex.EncodeToString([]byte("kluis/access-record")) + "01" + "01000000000000000000000000000000" + "0000000000000001" + "0b" +
		"000007ec84e0c7d2" + zeros + zeros + "00000008" + hex.EncodeToString([]byte("agent-17")) + "00000001" + "78" + "0000000000000000" + "00" + "0000000000000000" + "00000000" +
		"0000" + "0000000000000000" + "00000000000000000000000000000000" + "00" + "000007ec84e0c7d2" + "01" + "0000000000000009" + zeros + "01")
	if err != nil {
		t.Fatal(err)
	}
	got, err := describe(record, nil)
	if err != nil || !strings.Contains(got, `asked for    a step of a supplier 8712423000018: suspend`) || !strings.Contains(got, "outcome      given; nothing was opened") || !strings.Contains(got, `employee "agent-17"`) {
		t.Errorf("%v:\n%s", err, got)
	}
	if _, err := describe(record[:len(record)-40], nil); err == nil {
		t.Error("a record that is cut off is described")
	}
}

// No file, however made, is a proof by accident or a crash.
func FuzzCheck(f *testing.F) {
	f.Add([]byte(`[{"format":"kluis-audit-proof/1","origin":"a","checkpoint":"","index":0,"salt":"","record":"","receipt":"","hashes":[]}]`), []byte("record"))
	f.Fuzz(func(t *testing.T, file, record []byte) {
		if _, err := check(file, []byte("no keys"), "a", nil); err == nil {
			t.Fatal("proven without a key")
		}
		if says, err := describe(record, nil); err == nil && says == "" {
			t.Fatal("nothing said")
		}
	})
}
