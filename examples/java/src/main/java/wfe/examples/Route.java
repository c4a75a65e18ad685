package wfe.examples;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/** Which member of a namespace set has what has a key; the same in every language. */
public final class Route {
    private Route() {}

    /**
     * The index of a key among the members that GetNamespaceSet names. A key is a workflow's id, an
     * event's id, the resource of a lock.
     */
    public static int memberOf(String key, int members) {
        try {
            MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
            byte[] digest = sha256.digest(key.getBytes(StandardCharsets.UTF_8));
            return jump(ByteBuffer.wrap(digest).getLong(), members);
        } catch (NoSuchAlgorithmException e) {
            throw new AssertionError("every Java has it", e);
        }
    }

    /** Jump consistent hash, by Lamping and Veach: the bucket of a key, from 0. */
    private static int jump(long key, int buckets) {
        int bucket = -1;
        long following = 0;
        while (following < buckets) {
            bucket = (int) following;
            key = key * 2862933555777941757L + 1;
            following = (long) ((bucket + 1) * ((double) (1L << 31) / ((key >>> 33) + 1)));
        }
        return bucket;
    }

    /** Prints the member of each line's key: {@code MEMBERS<TAB>KEY}, where the key is in hex. */
    public static void main(String[] args) throws java.io.IOException {
        var lines = new java.io.BufferedReader(
                new java.io.InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] parts = line.split("\t", -1);
            byte[] key = java.util.HexFormat.of().parseHex(parts[1]);
            System.out.println(
                    memberOf(new String(key, StandardCharsets.UTF_8), Integer.parseInt(parts[0])));
        }
    }
}
