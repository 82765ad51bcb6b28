package auditlog_test

import (
	"testing"

	"kluis/auditlog"
	"kluis/cryptoserver/envelope"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/migrations"
)

// A name and address that was sealed is followed to where it is stored, as a
// block is: changed, moved or deleted, it is missed.
func TestIdentitiesAreFollowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in := must(postgres.NewIngest(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleIngest)}))(t)
	t.Cleanup(func() { w.check(in.Close()) })
	since := w.days.From - 100
	keys := must(w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: w.ean, Class: meter.Identity, Month: since.Month(), Occupancy: since}}))(t)
	person := meter.Person{Name: "Xantippe Overdam", Address: meter.Address{Street: "Dorpsstraat", HouseNumber: must(meter.ParseHouseNumber("17"))(t),
		Postcode: must(meter.ParsePostcode("1234AB"))(t), City: "Ons Dorp"}}
	sealed := must(w.as("ingest").SealIdentities(t.Context(), []envelope.PlainIdentity{{Key: keys[0], Version: 1, Person: person}}))(t)
	w.check(in.CommitIdentities(t.Context(), keys, []postgres.IdentityRow{{EAN: w.ean, Field: 9, Day: since, Version: 1, KeyID: keys[0].ID,
		ContentMAC: sealed[0].ContentMAC, Ciphertext: sealed[0].Ciphertext, BlindIndex: sealed[0].BlindIndex}}))
	// Sealed, and never stored: that is told, and no fault.
	must(w.as("ingest").SealIdentities(t.Context(), []envelope.PlainIdentity{{Key: keys[0], Version: 2, Person: person}}))(t)
	w.catchUp()
	if r := w.verify(); r.Counts[auditlog.NotStored] != 1 {
		t.Errorf("%+v", r.Counts)
	}

	w.tamper(`UPDATE sealed_identity SET ciphertext = set_byte(ciphertext, 70, get_byte(ciphertext, 70) # 1)`)
	w.finds(auditlog.BlockChanged)
	w.tamper(`UPDATE sealed_identity SET day = day + 1`)
	w.finds(auditlog.BlockMissing)
	w.tamper(`DELETE FROM sealed_identity`)
	w.finds(auditlog.BlockMissing)
}
