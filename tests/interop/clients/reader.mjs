// Reads objects with the AWS SDK for JavaScript and nothing but the default credential chain.
//
//   reader.mjs SECONDS ALLOWED [REFUSED]     reads ALLOWED again and again for SECONDS with one client, then REFUSED once
//
// Prints one JSON object: how many reads went well, the access keys that were used, the status of the refusal.
import { GetObjectCommand, S3Client } from "@aws-sdk/client-s3";

const [seconds, allowed, refused] = process.argv.slice(2);
const s3 = new S3Client({});
const keys = [];
let reads = 0;
let code = null;

const place = (path) => ({ Bucket: path.slice(0, path.indexOf("/")), Key: path.slice(path.indexOf("/") + 1) });
const read = async (path) => (await s3.send(new GetObjectCommand(place(path)))).Body.transformToString();

const end = Date.now() + Number(seconds) * 1000;
for (;;) {
  await read(allowed);
  reads += 1;
  const { accessKeyId } = await s3.config.credentials();
  if (!keys.includes(accessKeyId)) keys.push(accessKeyId);
  if (Date.now() > end) break;
  await new Promise((resolve) => setTimeout(resolve, 200));
}
if (refused) {
  try {
    await read(refused);
  } catch (error) {
    code = error.$metadata?.httpStatusCode ?? String(error);
  }
}
console.log(JSON.stringify({ reads, keys, refused: code }));
