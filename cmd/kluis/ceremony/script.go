package ceremony

import (
	"fmt"
	"strings"
)

// Script is the same ceremony for people at servers that no one machine
// reaches: what to run where, and what to carry how. servers are their
// configuration files' names, the creator's first.
func Script(epoch uint32, servers []string) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say(`# The key ceremony, epoch %d, %d servers. Two people at each server's console, a
# memory stick for folders, and another way (paper, telephone) for fingerprints:
# who could slip in a key of their own would get every key. Write down who did
# what when. Each step may be run again after an interruption.
#
# On HSMs that clone keys by themselves (a Luna's cloning domain, an nShield's
# Security World, a Utimaco's master backup key, one cluster of a cloud HSM) that is the way to bring
# keys to further partitions: run all steps for the first server alone, then
# clone, role by role, the objects kluis/kek/* and kluis/mac/* to the other
# servers' partitions with the vendor's tool, copy probe_key_file, and run
# 'kluis hsm check' there. Signing keys (kluis/seal, kluis/token) stay on the
# token that made them: steps 1 and 4 make and publish those of every server.`, epoch, len(servers))
	say("")
	say("# 1. On every server: tokens, signing keys, transport keys. It prints the fingerprint.")
	for i, s := range servers {
		say("cryptoserver keys init --config %s --so-pin-file so-pin --out public-%d   # on server %d", quote(s), i+1, i+1)
	}
	say("# Carry the folders public-* to server 1, the fingerprints by the other way.")
	say("")
	say("# 2. On server 1 alone: the keys, wrapped to every transport key.")
	say(`cryptoserver keys create --config %s --epoch %d \`, quote(servers[0]), epoch)
	for i := range servers {
		say(`  --to "$FINGERPRINT_%[1]d"=public-%[1]d \`, i+1)
	}
	say("  --out wrapped")
	say("# Carry the folder wrapped to every server.")
	say("")
	say("# 3. On every server: import, attack the KEKs, destroy the transport keys. The")
	say("# security officer makes the KEK of a rotate token a trusted key.")
	for i, s := range servers {
		say(`cryptoserver keys import --config %s --in wrapped --creator "$FINGERPRINT_1" --so-pin-file so-pin   # on server %d`, quote(s), i+1)
	}
	say("# The folder wrapped opens nowhere now; delete it all the same.")
	say("")
	say("# 4. The public keys, for everybody who verifies.")
	var from strings.Builder
	for i := range servers {
		fmt.Fprintf(&from, " --from public-%d", i+1)
	}
	say("cryptoserver keys public seal%s > seal-keys.pem", from.String())
	say("cryptoserver keys public jwks%s > jwks.json", from.String())
	say("")
	say("# 5. Start the cryptoservers, or restart them one after another. With 'kluis keys")
	say("# feed' running, make the epoch the active one and rewrap what is older:")
	say("kluis keys status")
	say("kluis keys rotate-kek")
	return b.String()
}

// quote makes a word of a shell command.
func quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
