package postgres_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"kluis/auditlog/leaf"
	"kluis/cryptoserver/envelope"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

func identityKey(of meter.EAN, d meter.Day) envelope.KeyRecord {
	k := key(of, meter.Identity, d.Month())
	k.Occupancy = d
	return k
}

func identity(k envelope.KeyRecord, version uint32, address byte) postgres.IdentityRow {
	return postgres.IdentityRow{
		EAN: k.EAN, Field: 9, Day: k.Occupancy, Version: version, KeyID: k.ID, ContentMAC: [32]byte{1, byte(version)},
		Ciphertext: append([]byte{byte(version)}, k.ID[:]...), BlindIndex: [32]byte{address},
	}
}

func TestIdentities(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in, g, c := ingest(t, d), gateway(t, d), custodian(t, d)
	long, moved := day("2003-05-10"), day("2024-02-01")
	home, next, away := ean(1), ean(2), ean(3)
	k1, k2, k3 := identityKey(home, long), identityKey(next, moved), identityKey(home, moved)
	at := []postgres.IdentityAt{{EAN: home, Day: long}, {EAN: next, Day: moved}, {EAN: home, Day: moved}, {EAN: away, Day: long}}

	heads, err := in.IdentityHeads(t.Context(), at)
	if err != nil || !slices.EqualFunc(heads, make([]postgres.IdentityHead, 4), func(a, b postgres.IdentityHead) bool { return a == b }) {
		t.Fatalf("%+v, %v", heads, err)
	}
	rows := []postgres.IdentityRow{identity(k1, 1, 7), identity(k2, 1, 7)}
	if err := in.CommitIdentities(t.Context(), []envelope.KeyRecord{k1, k2}, rows); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		keys []envelope.KeyRecord
		rows []postgres.IdentityRow
	}{
		"the same version":     {nil, rows[:1]},
		"a key of the same":    {[]envelope.KeyRecord{identityKey(home, long)}, nil},
		"a key that is gone":   {nil, []postgres.IdentityRow{identity(k3, 1, 7)}},
		"one that is, and one": {[]envelope.KeyRecord{k3}, []postgres.IdentityRow{identity(k3, 1, 7), rows[1]}},
	} {
		if tt.rows == nil {
			tt.rows = []postgres.IdentityRow{identity(tt.keys[0], 2, 7)}
		}
		if err := in.CommitIdentities(t.Context(), tt.keys, tt.rows); !errors.Is(err, postgres.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A correction; who lived there before stays another row.
	if err := in.CommitIdentities(t.Context(), []envelope.KeyRecord{k3}, []postgres.IdentityRow{identity(k1, 2, 7), identity(k3, 1, 8)}); err != nil {
		t.Fatal(err)
	}
	heads, err = in.IdentityHeads(t.Context(), at)
	if err != nil || heads[0].Version != 2 || heads[0].ContentMAC != [32]byte{1, 2} || heads[0].Key == nil || heads[0].Key.ID != k1.ID || !bytes.Equal(heads[0].Key.Wrapped, k1.Wrapped) ||
		heads[0].Key.MAC != k1.MAC || heads[0].Key.Occupancy != long || heads[0].Key.Class != meter.Identity || heads[2].Version != 1 || heads[2].Key.ID != k3.ID || heads[3].Version != 0 || heads[3].Key != nil {
		t.Errorf("%+v, %v", heads, err)
	}

	same := func(got *envelope.SealedIdentity, k envelope.KeyRecord, version uint32) bool {
		return got != nil && got.Day == k.Occupancy && got.Version == version && got.Key.ID == k.ID && got.Key.EAN == k.EAN && got.Key.Class == meter.Identity &&
			got.Key.Month == k.Month && got.Key.Occupancy == k.Occupancy && got.Key.Epoch == k.Epoch && got.Key.MAC == k.MAC && bytes.Equal(got.Key.Wrapped, k.Wrapped) &&
			bytes.Equal(got.Ciphertext, identity(k, version, 0).Ciphertext)
	}
	got, err := g.Identities(t.Context(), at)
	if err != nil || !same(got[0], k1, 2) || !same(got[1], k2, 1) || !same(got[2], k3, 1) || got[3] != nil {
		t.Errorf("%+v, %v", got, err)
	}
	find := func(address byte, after meter.EAN, limit int, want ...meter.EAN) {
		t.Helper()
		if got, err := g.AtAddress(t.Context(), [32]byte{address}, after, limit); err != nil || !slices.Equal(got, want) {
			t.Errorf("at address %d: %v, %v, want %v", address, got, err, want)
		}
	}
	find(7, meter.EAN{}, 9, home, next)
	find(7, meter.EAN{}, 1, home)
	find(7, home, 9, next)
	find(8, meter.EAN{}, 9, home)
	find(9, meter.EAN{}, 9)

	// The auditor finds them by their field, as blocks.
	a, err := postgres.NewAuditor(t.Context(), config(d, migrations.RoleAuditor))
	a = closing(t, a, err)
	digests, err := a.Digests(t.Context(), []leaf.Block{
		{EAN: home.Int64(), Field: 9, Day: int64(long), Version: 2}, {EAN: home.Int64(), Field: 1, Day: int64(long), Version: 2},
		{EAN: next.Int64(), Field: 9, Day: int64(moved), Version: 1},
	})
	if err != nil || digests[1] != nil || digests[0] == nil || digests[2] == nil ||
		*digests[0] != envelope.CiphertextDigest(got[0].Ciphertext) || *digests[2] != envelope.CiphertextDigest(got[1].Ciphertext) {
		t.Errorf("%v, %v", digests, err)
	}

	// Keys of old months are selected for erasure, but not those of identities.
	reading := key(home, meter.Registers, long.Month())
	row := block(home, 1, long, 1)
	row.KeyID = reading.ID
	if err := in.Commit(t.Context(), postgres.Batch{Keys: []envelope.KeyRecord{reading}, Blocks: []postgres.Row{row}}); err != nil {
		t.Fatal(err)
	}
	if old := scanAll(t, c, postgres.KeySelection{Before: day("2020-01-01").Month()}, 10); len(old) != 1 || old[0].ID != reading.ID {
		t.Errorf("before 2020: %+v", old)
	}
	if all := scanAll(t, c, postgres.KeySelection{EAN: home, Occupancy: &long}, 10); len(all) != 1 || all[0].ID != k1.ID || all[0].Class != meter.Identity {
		t.Errorf("of the occupancy: %+v", all)
	}

	// Another data key takes the place of one.
	under, err := c.BlocksUnder(t.Context(), k1)
	if err != nil || len(under) != 2 || under[0].Field != 9 || under[0].Day != long || under[0].Resolution != 0 || under[1].Version != 2 {
		t.Fatalf("%+v, %v", under, err)
	}
	renewed := identityKey(home, long)
	renewed.ID[15]++
	if err := c.ReplaceDataKey(t.Context(), k1, renewed, under[:1]); !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("not all of them: %v", err)
	}
	for i := range under {
		under[i].Ciphertext = append(under[i].Ciphertext, 'r')
	}
	if err := c.ReplaceDataKey(t.Context(), k1, renewed, under); err != nil {
		t.Fatal(err)
	}
	if got, err := g.Identities(t.Context(), at[:1]); err != nil || got[0].Key.ID != renewed.ID || !bytes.HasSuffix(got[0].Ciphertext, []byte("r")) {
		t.Errorf("%+v, %v", got, err)
	}

	// Erased: neither a MAC nor an index is left to compare with.
	if n, err := c.DeleteKeys(t.Context(), []postgres.KeyRef{{EAN: home, ID: renewed.ID}}, 3); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	got, err = g.Identities(t.Context(), at)
	if err != nil || got[0] == nil || got[0].Key.ID != [16]byte{} || !same(got[1], k2, 1) || !same(got[2], k3, 1) {
		t.Errorf("%+v, %v", got, err)
	}
	heads, err = in.IdentityHeads(t.Context(), at[:1])
	if err != nil || heads[0].Version != 2 || heads[0].ContentMAC != [32]byte{} || heads[0].Key != nil {
		t.Errorf("%+v, %v", heads, err)
	}
	find(7, meter.EAN{}, 9, next)
	find(8, meter.EAN{}, 9, home)
}
