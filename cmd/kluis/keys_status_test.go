package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/custodian"
	"kluis/meter"
)

func TestStatusView(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC)
	january := meter.DayFromDate(2026, 1, 1).Month()
	kek := custodian.KeyStatus{Label: "kluis/kek/1", Kind: "kek", Epoch: 1, MadeOn: now.AddDate(0, 0, -90), Attributes: []string{"unwrap", "never-extractable"}, Uses: 12345}
	good := custodian.Status{
		Sequence: 7, HeadAt: now.Add(-time.Hour), ActiveEpoch: 2, Before: january, ErasedKeys: 1234,
		Servers: []custodian.ServerStatus{
			{Address: "a:1", ServerID: "crypto-1", Roles: []string{"open", "seal"}, Healthy: true, Sequence: 7, HeadAt: now.Add(-3 * time.Second), ActiveEpoch: 2,
				Tokens: []custodian.TokenStatus{{Role: "open", Label: "t1", State: "up", Handles: 17, Keys: []custodian.KeyStatus{kek}}}},
			{Address: "b:1", Err: errors.New("connection refused")},
			{Address: "c:1", ServerID: "crypto-3", Healthy: true, Sequence: 7, HeadAt: now.Add(-61 * time.Second)},
			{Address: "d:1", ServerID: "crypto-4", Healthy: true, Sequence: 6, HeadAt: now},
			{Address: "e:1", ServerID: "crypto-5", Sequence: 7, HeadAt: now, Tokens: []custodian.TokenStatus{{Role: "sign", Label: "t5", State: "down"}}},
		},
		Unasked: []string{"b:1"},
		Epochs: []custodian.EpochStatus{
			{Epoch: 1, Destroyed: true, Deleted: custodian.ErasedCount{Erased: 3000}, Holders: []string{"crypto-1"}, Open: []uint32{1}},
			{Epoch: 2, Active: true, Keys: custodian.KeyCount{Keys: 52000, First: january, Last: january + 2}, Deleted: custodian.ErasedCount{Erased: 11, Retired: 4}, Open: []uint32{1, 2}},
			{Epoch: 3, Holders: []string{"crypto-1"}},
		},
	}
	text := func(st custodian.Status) string {
		t.Helper()
		var b bytes.Buffer
		if err := statusView(st, now).print(&b, now); err != nil {
			t.Fatal(err)
		}
		// Columns are padded; what is in them counts.
		var lines []string
		for line := range strings.Lines(b.String()) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return strings.Join(lines, "\n")
	}
	all := text(good)
	for _, want := range []string{
		"Control feed: entry 7, newest heartbeat 0 s ago, epoch 2 is active.",
		"Erased: 1,234 data keys by name, all of months before 2026-01.",
		"crypto-1 a:1 open,seal 7, 3 s ago 2 serves",
		"? b:1 not reached: connection refused",
		"crypto-3 c:1 7, 1 min ago 0 NO RECENT FEED: opens nothing",
		"crypto-4 d:1 6, 0 s ago 0 behind: 6 of 7 entries",
		"crypto-5 e:1 7, 0 s ago 0 a token is not well",
		"crypto-1 open t1 up 17 kluis/kek/1 90 d 12,345 unwrap, never-extractable",
		"crypto-5 sign t5 down 0",
		"1 given up 0 crypto-1",
		"2 active 52,000 2026-01 to 2026-03",
		"3 not active yet 0 crypto-1",
		"3,000 data keys of epoch 1: logically erased until epoch 1 is destroyed. A backup from before, with a token that has the KEK, still opens it. The tokens of crypto-1 still have the KEK of epoch 1: cryptoserver keys destroy. b:1 did not say what keys its tokens have.",
		"11 data keys of epoch 2: logically erased until epochs 1 and 2 are destroyed. A backup from before, with a token that has the KEK, still opens it. 4 more were replaced",
	} {
		if !strings.Contains("\n"+all+"\n", "\n"+want) {
			t.Errorf("%q is not in\n%s", want, all)
		}
	}

	for want, change := range map[string]func(*custodian.Status){
		"run kluis keys rotate-kek":                   func(st *custodian.Status) { st.ActiveEpoch = 0 },
		"nothing is served, until kluis keys reapply": func(st *custodian.Status) { st.Database = fmt.Errorf("%w: 3 of 7", custodian.ErrRolledBack) },
		"THE DATABASE: connection refused":            func(st *custodian.Status) { st.Database = errors.New("connection refused") },
		"Is kluis keys feed running?":                 func(st *custodian.Status) { st.Servers = st.Servers[2:3] },
		"\n1 destroyed 0\n": func(st *custodian.Status) {
			st.Unasked, st.Epochs = nil, slices.Clone(st.Epochs)
			st.Epochs[0].Holders = nil
		},
		"newest heartbeat never": func(st *custodian.Status) { st.Servers, st.HeartbeatAt = nil, time.Time{} },
	} {
		st := good
		change(&st)
		if got := text(st); !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	// Once no KEK is left, an erasure is an erasure.
	gone := good
	gone.Epochs = []custodian.EpochStatus{{Epoch: 1, Destroyed: true, Deleted: custodian.ErasedCount{Erased: 3000}}}
	if got := text(gone); strings.Contains(got, "logically") {
		t.Error(got)
	}

	// What is not there is there in JSON, as null or an empty list.
	b, err := json.Marshal(statusView(custodian.Status{}, now))
	if err != nil {
		t.Fatal(err)
	}
	const empty = `{"feed":{"sequence":0,"appended_at":null,"heartbeat_at":null,"active_epoch":0,"erased_keys":0,"rolled_back":false},"servers":[],"data_keys":[]}`
	if string(b) != empty {
		t.Errorf("%s", b)
	}
}
