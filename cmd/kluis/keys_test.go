package main

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"kluis/custodian"
	"kluis/internal/config"
	"kluis/meter"
)

// imported imports register reads of the metering point, a line each.
func (w *world) imported(rows ...string) {
	w.t.Helper()
	const mapping = `description: reads
csv: {delimiter: ";", decimal: "."}
time: {columns: [Date, Time], format: YYYY-MM-DD HH:mm, zone: Europe/Amsterdam}
every: PT1H
fields:
  - {field: import_low, reads: cumulative, columns: [Low], unit: kWh}
`
	m := w.write("mapping.yaml", []byte(mapping))
	f := w.write("reads.csv", []byte("Date;Time;Low\n"+strings.Join(rows, "\n")+"\n"))
	w.must("ingest", "csv", "--mapping", m, "--ean", testEAN, f)
}

func (w *world) status() keysStatusView {
	w.t.Helper()
	var v keysStatusView
	if err := json.Unmarshal([]byte(w.must("keys", "status", "--json")), &v); err != nil {
		w.t.Fatal(err)
	}
	return v
}

func TestKeysCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setUp()
	w.imported("2025-11-01;00:00;1.000", "2025-12-01;00:00;2.000", "2026-01-01;00:00;3.000")

	v := w.status()
	if v.Feed.Sequence != 1 || v.Feed.ActiveEpoch != 1 || v.Feed.HeartbeatAt == nil || len(v.Servers) != 1 || len(v.DataKeys) != 1 || v.DataKeys[0].Keys != 3 ||
		v.DataKeys[0].First != "2025-11" || v.DataKeys[0].Last != "2026-01" || v.DataKeys[0].State != "active" || !slices.Equal(v.DataKeys[0].HeldBy, []string{"cryptoserver-1"}) {
		t.Errorf("%+v", v)
	}
	if out := w.must("keys", "status"); !strings.Contains(out, "epoch 1 is active") || !strings.Contains(out, "kluis/kek/1") {
		t.Error(out)
	}
	// Nothing to do is nothing to ask.
	if out := w.must("keys", "rotate-kek"); !strings.Contains(out, "0 data keys rewrapped, 0 left") {
		t.Error(out)
	}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{exitRefused, "has no KEK of it", []string{"rotate-kek", "--epoch", "2", "--yes"}},
		{exitRefused, "was not given up", []string{"destroy-kek", "--epoch", "1", "--yes"}},
		{exitUsage, "nothing was done: say --yes in a script", []string{"destroy-kek", "--epoch", "1"}},
		{exitUsage, "nothing was done: say --yes in a script", []string{"rotate-data-keys", "--all"}},
		{exitUsage, "epochs start at 1", []string{"destroy-kek", "--epoch", "0"}},
		{exitUsage, "--grace", []string{"rotate-data-keys", "--all", "--grace", "0s"}},
		{exitUsage, "--minted-before", []string{"rotate-data-keys", "--all", "--minted-before", "yesterday"}},
		{exitUsage, "--rate", []string{"rotate-kek", "--rate=-1"}},
		{exitUsage, "--occupancy goes with --ean", []string{"erase", "--past-retention", "--occupancy", "2023-01-01"}},
	} {
		if code, _, complaint := w.kluis(append([]string{"keys"}, c.args...)...); code != c.code || !strings.Contains(complaint, c.want) {
			t.Errorf("%v: exit code %d: %s", c.args, code, complaint)
		}
	}

	// New data keys: the readings are the same.
	if out := w.must("keys", "rotate-data-keys", "--ean", testEAN, "--grace", "1s"); !strings.Contains(out, "3 data keys replaced, 3 blocks sealed again, 3 replaced data keys erased") ||
		!strings.Contains(out, "Acknowledged by 127.0.0.1:") {
		t.Error(out)
	}
	reads := w.open(testEAN, "import_low")
	if len(reads) != 3 || reads[meter.DayFromDate(2025, 12, 1)].Values[0] != 2000 {
		t.Errorf("%+v", reads)
	}

	// Erasing takes the number of the metering point, typed once more.
	for _, typed := range []string{"", "yes\n", otherEAN + "\n"} {
		code, out, complaint := w.kluisTyping(typed, "keys", "erase", "--ean", testEAN)
		if code != exitUsage || !strings.Contains(complaint, "nothing was done") || strings.Contains(out+complaint, testEAN) {
			t.Errorf("typed %q: exit code %d: %s%s", typed, code, out, complaint)
		}
	}
	var done erased
	code, out, complaint := w.kluisTyping(testEAN+"\n", "keys", "erase", "--ean", testEAN, "--occupancy", "2022-01-01", "--json")
	if err := json.Unmarshal([]byte(out), &done); code != exitOK || err != nil || done.Keys != 0 || w.count("data_key") != 3 {
		t.Errorf("an occupancy that is not there: exit code %d, %v: %s%s", code, err, out, complaint)
	}
	code, out, complaint = w.kluisTyping(testEAN+"\n", "keys", "erase", "--ean", testEAN, "--occupancy", "2023-01-01", "--json")
	if err := json.Unmarshal([]byte(out), &done); code != exitOK || err != nil || done.Keys != 3 || done.Deleted != 3 || done.Left != 0 ||
		len(done.Entries) != 1 || !slices.Equal(done.Logical, []uint32{1}) || len(done.Servers) != 1 || !done.Servers[0].Acknowledged {
		t.Errorf("exit code %d, %v: %s%s", code, err, out, complaint)
	}
	if n := w.count("data_key"); n != 0 {
		t.Errorf("%d data keys are left", n)
	}
	if v := w.status(); len(v.DataKeys) != 1 || !slices.Equal(v.DataKeys[0].Logical, []uint32{1}) || v.DataKeys[0].Erased != 6 || v.Feed.ErasedKeys != 6 {
		t.Errorf("%+v", v)
	}
	// Imported anew, it has new data keys.
	w.imported("2025-11-01;00:00;1.000")
	if n := len(w.open(testEAN, "import_low")); w.count("data_key") != 1 || n != 1 {
		t.Errorf("%d data keys, %d reads", w.count("data_key"), n)
	}

	// The retention of the Dutch profile is 24 months.
	w.imported("2023-05-01;00:00;0.500")
	if out := w.must("keys", "erase", "--past-retention", "--yes"); !strings.Contains(out, "Erased: 1 data keys deleted") {
		t.Error(out)
	}
	if v := w.status(); v.Feed.Before == "" || v.DataKeys[0].Keys != 1 {
		t.Errorf("%+v", v)
	}
	if out := w.must("keys", "reapply"); !strings.Contains(out, "0 entries of the control feed put back") {
		t.Error(out)
	}

	// Without the parts of the custodian it says what is missing.
	conf, err := config.Load[config.Operator](w.config)
	if err != nil {
		t.Fatal(err)
	}
	conf.CustodianURL = ""
	if err := config.Write(w.config, conf); err != nil {
		t.Fatal(err)
	}
	if code, _, complaint := w.kluis("keys", "status"); code != exitFailed || !strings.Contains(complaint, "custodian_url") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
}

// A copy of the feed that others can read or that is no copy is not used.
func TestKeysRefuseTheCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	conf, err := config.Load[config.Operator](w.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(conf.FeedCopyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, complaint := w.kluis("keys", "status"); code != exitFailed || !strings.Contains(complaint, "chmod 600") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
	conf.FeedCopyFile = w.write("other", []byte("something else\n"))
	if err := config.Write(w.config, conf); err != nil {
		t.Fatal(err)
	}
	if code, _, complaint := w.kluis("keys", "status"); code != exitFailed || !strings.Contains(complaint, "no copy of a control feed") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
}

// The newest epoch is one that every token with KEKs has.
func TestNewestEpoch(t *testing.T) {
	t.Parallel()
	token := func(role string, epochs ...uint32) custodian.TokenStatus {
		s := custodian.TokenStatus{Role: role}
		for _, e := range epochs {
			s.Keys = append(s.Keys, custodian.KeyStatus{Kind: "kek", Epoch: e})
		}
		return s
	}
	server := func(tokens ...custodian.TokenStatus) custodian.ServerStatus {
		return custodian.ServerStatus{Tokens: append(tokens, token("sign"))}
	}
	for name, c := range map[string]struct {
		active  uint32
		servers []custodian.ServerStatus
		want    uint32
	}{
		"nothing yet":              {0, nil, 0},
		"the first":                {0, []custodian.ServerStatus{server(token("open", 1), token("mint", 1))}, 1},
		"a later one":              {1, []custodian.ServerStatus{server(token("open", 1, 2)), server(token("open", 2))}, 2},
		"not on every token":       {1, []custodian.ServerStatus{server(token("open", 1, 2), token("mint", 1))}, 1},
		"not on every server":      {1, []custodian.ServerStatus{server(token("open", 1, 2)), server(token("open", 1))}, 1},
		"one in between":           {1, []custodian.ServerStatus{server(token("open", 1, 2, 3)), server(token("open", 1, 2))}, 2},
		"a server does not answer": {1, []custodian.ServerStatus{server(token("open", 2)), {Err: errors.New("away")}}, 2},
	} {
		st := custodian.Status{ActiveEpoch: c.active, Servers: c.servers}
		for e := range uint32(3) {
			st.Epochs = append(st.Epochs, custodian.EpochStatus{Epoch: e + 1})
		}
		if c.servers == nil {
			st.Epochs = nil
		}
		if got := newest(st); got != c.want {
			t.Errorf("%s: epoch %d, want %d", name, got, c.want)
		}
	}
	destroyed := custodian.Status{ActiveEpoch: 1, Epochs: []custodian.EpochStatus{{Epoch: 2, Destroyed: true}}}
	if got := newest(destroyed); got != 1 {
		t.Errorf("epoch %d, which is destroyed", got)
	}
}
