// Package authz decides who may read what of a metering point, and why. It is
// pure: no clock, no database, no network, no keys but public ones. The
// gateway and the cryptoserver run the same code on the same bytes.
//
// # The model
//
// Everything that decides who may read one metering point is in its
// [LegalFile]: who lived there when ([Occupancy]), who supplied it when
// ([SupplyPeriod]), what customers were asked for and permitted ([Consent]) and
// on which days they opted out of remote reading. A legal file is never edited,
// also not to correct it. A [Step] says what changed ("supplier B from 1 July"),
// and [Apply] turns the file and the step into the next version: a pure
// function, so that anyone can check it afterwards. Each version names the
// digest of the one before, the step taken and who took it ([Actor]).
//
// Who may take a step by token, a supplier or an employee of the grid operator
// on an [Errand] for the customer, is for [Permit] to say, by the market profile
// and the time. What became of a consent by then is its [Standing].
//
// Nobody has to trust the database that stores these files. The cryptoserver
// signs every version with a key in its HSM ([Seal]); whoever uses one first
// verifies it against pinned public keys ([SealKeys]). There is no other way
// to turn bytes into a *LegalFile, and a file that breaks a rule (overlapping
// suppliers, a consent of nobody) is refused although its signature is good.
// The record of a supplier and its client certificates ([Supplier]) is sealed
// in the same way.
//
// # The decision
//
// [Decide] takes an authenticated [Caller], a [Request], the legal file, the
// market profile and the time. The profile's rules say what the law gives for
// a purpose: which classes of fields, how fine, on which days and how far back,
// and resting on which basis. The legal file says on which days the facts for
// that basis exist. The result is a [Grant], which only Decide can make and
// without which nothing is fetched or opened, and a list of what is [Withheld],
// with a reason. Each field and day asked for is in exactly one of the two.
//
// A caller that never had anything to do with the metering point gets
// [ErrNoRelation], exactly as for one that does not exist.
//
// Facts about other suppliers never influence a decision: not the grant, and
// not a reason.
package authz
